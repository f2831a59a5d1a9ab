"""Puts what an engine needs into the folder of an artifact."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..passes.duplicates import MergeDuplicateWeights
from ..passes.errors import LoweringError
from ..passes.structures.base import Form
from ..runtime.artifact import (
    CUBLAS,
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
from .stored import Stored, bytes_by_name, weight_bytes
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


def check_toolchain(target: Target) -> None:
    """Refuses to start long work that the target's packages or tools could not finish.

    Raises:
        MissingDependencyError: a package, the linker or nvcc is missing; says what to install.
        TargetError: LLVM does not know the CPU of the target.
        TuningError: the measured tilings cannot be read.
    """
    if target.compiles and target.tuned:
        from .tuning.database import read_records

        read_records()
    if target.engine == "tvm":
        if target.device == "cuda":
            from .cuda.module import check_device_compiler

            check_device_compiler(target.architectures)
        target.tvm()
        from . import relax_build

        relax_build.check_toolchain(target)
        if "cublas" in target.libraries:
            from .cuda.cublas import cpp_compiler

            cpp_compiler()
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

        relax_build.check(model, target)


@dataclass(frozen=True)
class Lowered:
    """What the manifest has to know about the files of an engine.

    Attributes:
        engine: the one the artifact is made for.
        stored: what it loads from disk.
        parameters: names of the weights in the order of TVM's main; empty for ONNX Runtime.
        dimension_bounds: lengths of symbols that the engine relies on.
        cpu_features: flags that `module.so` or `kernels.so` cannot run without.
        kernels: what made `kernels.so`; None without it.
        generic_functions: functions of TVM that no rule but the last one scheduled, with the name
            of the rule, or None where none fitted.
        tuning: the kernels that asked for tilings, the functions that no rule fits, and the
            records that they took; None for ONNX Runtime's own kernels, which have none.
        versions: of what packed weights look like, beside those of the packages.
    """

    engine: Engine
    stored: Stored
    parameters: tuple[str, ...] = ()
    dimension_bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cpu_features: tuple[str, ...] = ()
    kernels: Kernels | None = None
    generic_functions: Mapping[str, str | None] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Its part of `report.json`."""
        generic = [{"name": name, "rule": rule} for name, rule in self.generic_functions.items()]
        return {"generic_functions": generic, "tuning": self.tuning}


def lower(
    model: ir.Model,
    target: Target,
    folder: Path,
    *,
    with_onnx: bool,
) -> Lowered:
    """Writes `model.onnx`, `kernels.so`, or `module.so` and its weights, into `folder`.

    Args:
        model: the rewritten model.
        target: to compile for.
        folder: of the artifact.
        with_onnx: for a TVM target, write `model.onnx` too.
    """
    if target.engine == "ort" or with_onnx:
        onnx_runtime.save(model, folder)
    if target.engine == "ort" and not target.kernels:
        return Lowered("ort", _stored(model, folder))
    from .kernels import targets
    from .kernels.blocks import PACKING
    from .relax_build.traces import traced
    from .tuning.choose import UNTUNED, choose_records

    chosen = choose_records(target.compiled_for) if target.tuned else UNTUNED
    with (
        targets.tuned(chosen.fields),
        targets.asked() as asked,
        traced(chosen.traces) as met,
    ):
        if target.engine == "ort":
            lowered = _lower_for_onnx_runtime(model, target, folder)
        else:
            lowered = _lower_for_tvm(model, target, folder)
    versions = {"packing": str(PACKING)}
    return replace(lowered, tuning=chosen.report(asked, met), versions=versions)


def _lower_for_tvm(model: ir.Model, target: Target, folder: Path) -> Lowered:
    """`module.so` and its weights."""
    from safetensors.numpy import save_file

    from .relax_build import build

    module = build(model, target)
    module.export(folder)
    save_file(module.weights, folder / WEIGHTS)
    # safetensors leaves it to its owner alone; whoever may read the code may read the weights.
    (folder / WEIGHTS).chmod((folder / MODULE).stat().st_mode & 0o666)
    return Lowered(
        "tvm",
        Stored(
            sum(array.nbytes for array in module.weights.values()),
            _bytes(folder, MODULE, CUBLAS),
            module.bytes_by_name,
        ),
        tuple(module.parameter_names),
        {
            name: (low, sys.maxsize if high is None else high)
            for name, (low, high) in module.dimension_bounds.items()
        },
        target.cpu_features(),
        generic_functions=module.generic_functions,
    )


def _lower_for_onnx_runtime(model: ir.Model, target: Target, folder: Path) -> Lowered:
    """`kernels.so`, if the model has a structured node."""
    from . import ort_kernels

    packed = ort_kernels.build(model, folder / KERNELS)
    stored = _stored(model, folder, packed)
    if not packed:
        return Lowered("ort", stored)
    features = ort_kernels.HOST.cpu_features()
    return Lowered("ort", stored, cpu_features=features, kernels=target.kernels)


def _stored(model: ir.Model, folder: Path, packed: int = 0) -> Stored:
    """What ONNX Runtime loads; `kernels.so` has `packed` bytes of weights of its own."""
    weights = weight_bytes(model) + packed
    files = _bytes(folder, MODEL, MODEL_DATA, KERNELS)
    return Stored(weights, max(0, files - weights), bytes_by_name(model))


def _bytes(folder: Path, *names: str) -> int:
    return sum((folder / name).stat().st_size for name in names if (folder / name).exists())
