"""`load(source) -> ir.Model`: every source a model may come from ends in the one representation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from ..passes.errors import LoadError


def load(
    source: Any,
    args: Sequence[Any] | Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ir.Model:
    """Captures a trained model; the source is neither changed nor copied.

    Args:
        source: an `nn.Module` in evaluation mode, an `ExportedProgram`, the path of a `.pt2` or
            ONNX file, an `onnx.ModelProto` or an `ir.Model`.
        args: example inputs of an `nn.Module`: a tuple, or a dict of keyword arguments.
        dynamic_shapes: as `torch.export` takes them; with an `ExportedProgram` or `.pt2`, which
            hold no names of dimensions, they only name what is already dynamic.

    Returns:
        A model whose weights keep their parameters' names and are read when they are needed. The
        bounds of named dimensions stand in `metadata_props["undense.dim_bounds"]` as JSON,
        `{"seq": [2, 512]}`, with null for a side that is open.

    Raises:
        LoadError: the source cannot be captured; the message names the file or module, the cause
            and the remedy.
    """
    is_module = _is_a(source, "torch.nn.modules.module", "Module")
    if args is not None and not is_module:
        raise LoadError("args are the example inputs of an nn.Module; leave them out for a file")
    if is_module:
        from .torch_export import from_module

        return from_module(source, args, dynamic_shapes)
    if _is_a(source, "torch.export.exported_program", "ExportedProgram"):
        from .torch_export import from_exported_program

        return from_exported_program(source, dynamic_shapes)
    check_path(source)
    if isinstance(source, (str, Path)) and Path(source).suffix == ".pt2":
        from .torch_export import from_pt2_file

        return from_pt2_file(Path(source), dynamic_shapes)
    if dynamic_shapes is not None:
        raise LoadError("dynamic_shapes are for PyTorch sources; an ONNX model holds its own")
    from .onnx_file import from_ir, from_onnx_file, from_proto

    if isinstance(source, (str, Path)):
        return from_onnx_file(Path(source))
    if isinstance(source, onnx.ModelProto):
        return from_proto(source)
    if isinstance(source, ir.Model):
        return from_ir(source)
    raise LoadError(
        f"{type(source).__module__}.{type(source).__name__} is no model; known are nn.Module, "
        "ExportedProgram, a .pt2 or ONNX path, onnx.ModelProto and onnx_ir.Model"
    )


def check_path(source: Any) -> None:
    """Refuses a path where no file is, before anything is imported to read it.

    Raises:
        LoadError: there is no such file, or a folder; names it.
    """
    if not isinstance(source, (str, Path)) or Path(source).is_file():
        return
    if Path(source).exists():
        raise LoadError(f"{source}: not a file; give the path of the .onnx or .pt2 file itself")
    raise LoadError(f"{source}: there is no such file")


def _is_a(source: object, module: str, name: str) -> bool:
    """`isinstance` by the name of the class: torch is not imported for a user without it."""
    return any(cls.__module__ == module and cls.__name__ == name for cls in type(source).__mro__)
