"""Puts what an engine needs into the folder of an artifact."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from ..passes.duplicates import MergeDuplicateWeights
from ..passes.errors import LoweringError
from ..passes.structures.base import Form
from ..runtime.artifact import (
    KERNELS,
    MODEL,
    MODEL_DATA,
    MODULE,
    WEIGHTS,
    Engine,
    Kernels,
    TensorInfo,
)
from . import onnx_runtime
from .target import Target


def tensor_infos(
    values: Iterable[ir.Value], bounds: Mapping[str, tuple[int, int]]
) -> tuple[TensorInfo, ...]:
    """Names, dtypes and shapes of graph inputs or outputs, with the bounds of index inputs.

    Raises:
        LoweringError: a value whose type or rank is not known.
    """
    infos = []
    for value in values:
        name = str(value.name)
        if value.dtype is None or value.shape is None:
            raise LoweringError(f"{name}: its type or rank is not known; export the model with it")
        shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        infos.append(TensorInfo(name, value.dtype.numpy().name, shape, bounds.get(name)))
    return tuple(infos)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers: what the file of a dense model holds beside its graph."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def check_toolchain(target: Target) -> None:
    """Refuses to start long work that the target's packages or tools could not finish.

    Raises:
        MissingDependencyError: a package or the linker is missing; says what to install.
        TargetError: LLVM does not know the CPU of the target.
    """
    if target.engine == "tvm":
        target.tvm()
        from . import relax_build

        relax_build.check_toolchain()
    elif target.kernels:
        from . import ort_kernels

        ort_kernels.check_toolchain()


def prepare(model: ir.Model, target: Target, form: Form, *, with_onnx: bool) -> None:
    """Readies a captured model in place: tied weights joined, opset in reach, operators covered.

    Raises:
        LoweringError: an opset or operator that the target does not cover; names the node.
    """
    MergeDuplicateWeights()(model)
    if target.engine == "ort" or with_onnx:
        onnx_runtime.prepare(model, form)
    if target.engine == "tvm":
        from . import relax_build

        relax_build.check(model)


@dataclass(frozen=True)
class Lowered:
    """What the manifest has to know about the files of an engine.

    Attributes:
        engine: the one the artifact is made for.
        engine_bytes: what it loads from disk.
        parameters: names of the weights in the order of TVM's main; empty for ONNX Runtime.
        dimension_bounds: lengths of symbols that the engine relies on.
        cpu_features: flags that `module.so` or `kernels.so` cannot run without.
        kernels: what made `kernels.so`; None without it.
    """

    engine: Engine
    engine_bytes: int
    parameters: tuple[str, ...] = ()
    dimension_bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cpu_features: tuple[str, ...] = ()
    kernels: Kernels | None = None


def lower(model: ir.Model, target: Target, folder: Path, *, with_onnx: bool) -> Lowered:
    """Writes `model.onnx`, `kernels.so`, or `module.so` and its weights, into `folder`."""
    if target.engine == "ort" or with_onnx:
        onnx_runtime.save(model, folder)
    if target.engine == "ort":
        return _lower_for_onnx_runtime(model, target, folder)
    from safetensors.numpy import save_file

    from .relax_build import build

    module = build(model, target)
    module.export(folder)
    save_file(module.weights, folder / WEIGHTS)
    return Lowered(
        "tvm",
        _bytes(folder, MODULE, WEIGHTS),
        tuple(module.parameter_names),
        {
            name: (low, sys.maxsize if high is None else high)
            for name, (low, high) in module.dimension_bounds.items()
        },
        target.cpu_features(),
    )


def _lower_for_onnx_runtime(model: ir.Model, target: Target, folder: Path) -> Lowered:
    """What `lower` does for ONNX Runtime behind `model.onnx`."""
    if target.kernels:
        from . import ort_kernels

        if ort_kernels.build(model, folder / KERNELS):
            size = _bytes(folder, MODEL, MODEL_DATA, KERNELS)
            features = ort_kernels.HOST.cpu_features()
            return Lowered("ort", size, cpu_features=features, kernels=target.kernels)
    return Lowered("ort", _bytes(folder, MODEL, MODEL_DATA))


def _bytes(folder: Path, *names: str) -> int:
    return sum((folder / name).stat().st_size for name in names if (folder / name).exists())
