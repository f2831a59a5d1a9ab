"""Names of dynamic dimensions that a person can read, where torch's exporter has `s27`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir

_SYMBOL = re.compile(r"\b[su]\d+\b")


def name_dimensions(model: ir.Model, program: Any) -> None:
    """Renames torch's symbols in every shape of `model`, in place.

    A dimension gets the name of its `torch.export.Dim` where the program has it, which a `.pt2`
    file has not; else it is named by the first axis that has its length, as `x_dim1`. Names that
    were given with `dynamic_shapes` stay.
    """
    stated = _stated_names(program)
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, ir.SymbolicDim) or dim.value is None or dim.value in names:
                continue
            if _SYMBOL.fullmatch(dim.value):
                wanted = stated.get(dim.value)
                fresh = wanted is not None and wanted not in names.values()
                names[dim.value] = str(wanted) if fresh else f"{value.name}_dim{axis}"
    if names:
        for value in _values(model):
            _rename(value, names)


def _stated_names(program: Any) -> dict[str, str]:
    """Names of `Dim`s by the symbols that torch has put in their places."""
    for node in program.graph.find_nodes(op="placeholder"):
        shape = getattr(node.meta.get("val"), "shape", ())
        for environment in (size.node.shape_env for size in shape if hasattr(size, "node")):
            # Not public: without them dimensions are named by their axes.
            symbols = getattr(environment, "source_to_var", {})
            given = getattr(environment, "source_name_to_debug_name", {})
            return {
                str(environment.replace(symbol)): given[source]
                for source, symbol in symbols.items()
                if str(given.get(source, "")).isidentifier()
            }
    return {}


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in (node for scope in scopes for node in scope.all_nodes()):
        yield from node.outputs


def _rename(value: ir.Value, names: Mapping[str, str]) -> None:
    dims = list(value.shape or ())
    for axis, dim in enumerate(dims):
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
            text = _SYMBOL.sub(lambda found: names.get(found[0], found[0]), dim.value)
            if text != dim.value:
                dims[axis] = ir.SymbolicDim(text)
    if value.shape is not None and dims != list(value.shape):
        value.shape = ir.Shape(dims)
