"""PyTorch to `ir.Model`: `torch.export`, then torch's ONNX exporter, with the parameters' names.

The exporter's own optimiser folds `Transpose(weight)` into a nameless copy of every weight, which
loses the names, doubles the memory and unties tied weights: `tidy` does its work instead.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from ..passes.errors import LoadError
from .bounds import DIM_BOUNDS
from .dimension_names import name_dimensions
from .shapes import infer_missing_shapes, quiet
from .tidy import fold_transposes, tidy

# From 23 on the exporter keeps `Attention`, whose kernel in ONNX Runtime 1.31 refuses masks that
# broadcast over the queries; the decomposed form runs everywhere. 21 is the first opset with
# blocked DequantizeLinear, which the portable form of codes needs, and is as fast as 20.
OPSET_VERSION = 21


def from_module(
    module: torch.nn.Module,
    args: Sequence[Any] | Mapping[str, Any] | None,
    dynamic_shapes: Any = None,
) -> ir.Model:
    """Captures a module in evaluation mode; `args` are its example inputs."""
    name = type(module).__name__
    if args is None:
        raise LoadError(f"{name}: an nn.Module is captured by running it; give example inputs")
    training = [path or name for path, part in module.named_modules() if part.training]
    if training:
        raise LoadError(f"{name}: {training[0]} is in training mode; call .eval() first")
    if isinstance(args, torch.Tensor):
        args = (args,)
    positional, keywords = ((), dict(args)) if isinstance(args, Mapping) else (tuple(args), None)
    try:
        with _silent():
            program = torch.export.export(
                module, positional, keywords, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        raise LoadError(f"{name}: torch.export failed: {_first_line(error)}") from error
    return from_exported_program(program, dynamic_shapes)


def from_pt2_file(path: Path, dynamic_shapes: Any = None) -> ir.Model:
    """Captures the program of a file that `torch.export.save` wrote."""
    try:
        with _silent():
            program = torch.export.load(path)
    except Exception as error:
        raise LoadError(
            f"{path}: not a program of torch.export.save, or damaged: {_first_line(error)}"
        ) from error
    return from_exported_program(program, dynamic_shapes)


def from_exported_program(
    program: torch.export.ExportedProgram, dynamic_shapes: Any = None
) -> ir.Model:
    """Converts an exported program to ONNX; the weights stay where they are, uncopied."""
    try:
        with _silent():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                output_names=_output_names(program),
                opset_version=OPSET_VERSION,
                optimize=False,
                verbose=False,
            )
            assert exported is not None
            model = exported.model
            tidy(model)
    except Exception as error:
        raise LoadError(f"conversion to ONNX failed: {_first_line(error)}") from error
    _restore_names(model, program)
    fold_transposes(model)
    name_dimensions(model, program)
    bounds = _dim_bounds(model, program)
    if bounds:
        model.metadata_props[DIM_BOUNDS] = json.dumps(bounds)
    infer_missing_shapes(model)
    return model


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Holds back the exporter's known chatter, and nothing else."""
    chatter = (
        r".*isinstance\(treespec, LeafSpec\).*is deprecated.*",
        r"The tensor attributes? .*_flat_weights.* assigned during export.*",  # of LSTM and GRU
        r"# The axis name: .* will not be used, since it shares the same shape constraints.*",
    )
    with warnings.catch_warnings(), quiet("torch.onnx._internal.exporter._registration"):
        for message in chatter:
            warnings.filterwarnings("ignore", message=message)
        yield


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    """The keys that lead to each output, as in `logits` or `present_0_key`."""
    spec = program.call_spec.out_spec
    assert spec is not None
    leaves, _ = pytree.tree_flatten_with_path(
        pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    )
    names = []
    for path, _leaf in leaves:
        keys = re.findall(r"\w+", pytree.keystr(path))
        names.append("_".join(keys if keys and not keys[0].isdigit() else ["output", *keys]))
    return names


def _restore_names(model: ir.Model, program: torch.export.ExportedProgram) -> None:
    """Gives a tied weight the first of its names, as `named_parameters` does."""
    first: dict[tuple[Any, ...], str] = {}
    names: dict[str, str] = {}
    for name, tensor in program.state_dict.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        names[name] = first.setdefault(key, name) if tensor.numel() else name
    initializers = model.graph.initializers
    for value in list(initializers.values()):
        wanted = names.get(str(value.name))
        if wanted is not None and wanted not in initializers:
            value.name = wanted


def _dim_bounds(
    model: ir.Model, program: torch.export.ExportedProgram
) -> dict[str, list[int | None]]:
    """`{name: [low, high]}` of the symbolic dimensions of the inputs that have bounds."""
    user_inputs = set(program.graph_signature.user_inputs)
    nodes = [
        node
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in user_inputs and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    bounds: dict[str, list[int | None]] = {}
    for node, value in zip(nodes, model.graph.inputs, strict=True):
        assert value.shape is not None
        for size, dim in zip(node.meta["val"].shape, value.shape, strict=True):
            if not isinstance(size, torch.SymInt) or not isinstance(dim, ir.SymbolicDim):
                continue
            allowed = program.range_constraints.get(size.node.expr)
            if allowed is None or dim.value is None:
                continue
            low, high = _finite(allowed.lower), _finite(allowed.upper)
            # Without a bound of the user's, torch writes 0, or 2 because it takes sizes 0 and 1
            # for special cases of the example: neither is a limit of the model.
            if high is not None or low not in (None, 0, 2):
                bounds[dim.value] = [low, high]
    return bounds


def _finite(bound: Any) -> int | None:
    value = float(bound)
    # torch writes the largest index for "no bound" in places.
    return None if math.isinf(value) or value >= 2**62 else int(value)
