"""What is installed and usable here, and the ONNX Runtime traps of a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from ..passes.errors import MissingDependencyError, UndenseError
from ..runtime import cuda_provider
from .cuda.nvcc import find_nvcc
from .host_compiler import COMPILERS

PINNED = {
    "apache-tvm": ("0.27.0.post1", "its intermediate language differs from release to release"),
    "apache-tvm-ffi": (
        "0.1.14.post1",
        "later ones crash in Schedule.tensorize, and MetaSchedule finds nothing with them",
    ),
}
"""Exact versions, each with the reason."""

_PACKAGES = (
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "safetensors",
    "torch",
)


def examine_machine() -> dict[str, Any]:
    """Packages, engines and tools; `usable` says whether an artifact can be run here at all."""
    packages = {name: _version(name) for name in _PACKAGES}
    problems = list(_problems(packages))
    engines = {
        "ort": bool(packages["onnxruntime"] or packages["onnxruntime-gpu"]),
        "tvm": bool(packages["apache-tvm"] and packages["apache-tvm-ffi"]),
    }
    if not any(engines.values()):
        problems.append("no engine is installed: pip install 'undense[cpu]'")
    cuda = cuda_provider.obstacle()
    if cuda and packages["onnxruntime-gpu"]:
        problems.append(f"target ort-cuda cannot run here: {cuda}")
    can_compile = all(packages[name] for name in ("onnx", "onnx-ir", "onnxscript"))
    tuning = _tuning() if engines["tvm"] and can_compile else None
    if tuning and tuning["problem"]:
        problems.append(tuning["problem"])
    return {
        "usable": any(engines.values()),
        "engines": engines,
        "ort_cuda": {"usable": cuda is None, "problem": None if cuda is None else str(cuda)},
        "can_compile": can_compile,
        "linker": _first(COMPILERS),
        "nvcc": _nvcc(),
        "cuda": _cuda() if engines["tvm"] else {"usable": False, "problem": "TVM is missing"},
        "cpu": _cpu(),
        "tuning": tuning,
        "packages": packages,
        "problems": problems,
    }


def _problems(packages: dict[str, str | None]) -> Iterator[str]:
    for name, (wanted, reason) in PINNED.items():
        found = packages[name]
        if found and found != wanted:
            yield (
                f"{name} is {found} and undense needs {wanted} ({reason}): "
                f"pip install {name}=={wanted}"
            )
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        yield "onnxruntime and onnxruntime-gpu provide the same module: uninstall one of them"
    if not _first(COMPILERS):
        yield "no linker: compiling for llvm needs g++ or clang (loading artifacts does not)"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _first(programs: tuple[str, ...]) -> str | None:
    return next(filter(None, map(shutil.which, programs)), None)


def _tuning() -> dict[str, Any]:
    """Where measurements are kept, and how many of them fit this processor."""
    from .target import Target
    from .tuning.choose import choose_records
    from .tuning.database import database_path, read_records
    from .tuning.record import processor_name

    found: dict[str, Any] = {"database": str(database_path()), "records": 0, "problem": None}
    try:
        target = Target("tvm")
        found["cpu"] = processor_name(target)
        found["records"] = len(read_records())
        sources = [source for _, source in choose_records(target).records.values()]
    except UndenseError as error:
        return {**found, "problem": str(error)}
    return {
        **found,
        "measured_here": sources.count("measured here"),
        "shipped": sources.count("shipped"),
    }


def _nvcc() -> str | None:
    """The compiler that target cuda would use."""
    try:
        return str(find_nvcc())
    except MissingDependencyError:
        return None


def _cuda() -> dict[str, Any]:
    """Whether artifacts for target cuda run here, and why not."""
    from ..runtime.cuda_runtime import cuda_device

    try:
        cuda_device((), "target cuda")
    except UndenseError as error:
        return {"usable": False, "problem": str(error)}
    return {"usable": True, "problem": None}


def _cpu() -> dict[str, Any]:
    from ..runtime.hardware import machine

    return machine()


def examine_model(model: Any) -> list[str]:
    """The slow paths and silent-error traps of ONNX Runtime 1.31 that `model` would meet.

    Args:
        model: an `onnx_ir.Model`.

    Returns:
        One sentence for each node concerned, naming it and the remedy.
    """
    from .onnx_runtime import MAX_IR_VERSION, MAX_OPSET

    found = []
    opset = model.opset_imports.get("", 0)
    if opset > MAX_OPSET:
        found.append(f"opset {opset} is not read; export with {MAX_OPSET} or less")
    if model.ir_version > MAX_IR_VERSION:
        found.append(f"IR {model.ir_version} is not read; save with {MAX_IR_VERSION} or less")
    for node in model.graph.all_nodes():
        check = _NODE_CHECKS.get(node.op_type)
        if check is not None:
            found += [f"{node.name or node.op_type}: {text}" for text in check(node)]
    return found


def _attribute(node: Any, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def _check_matmul_n_bits(node: Any) -> Iterator[str]:
    level, bits = _attribute(node, "accuracy_level", 0), _attribute(node, "bits", 4)
    block = _attribute(node, "block_size", 32)
    if level == 4:
        yield "accuracy_level=4 rounds activations to int8, about 0.6 % relative error a layer"
    elif bits in (2, 8):
        yield (
            f"{bits}-bit weights at accuracy_level={level} are dequantised whole at each call, "
            "slower than dense; set accuracy_level=4"
        )
    if level == 4 and bits == 2 and block not in (32, 64, 128):
        yield f"2-bit weights in blocks of {block} have no fast kernel; take 32, 64 or 128"


def _check_dequantize(node: Any) -> Iterator[str]:
    consumers = {user.op_type for user, _ in node.outputs[0].uses()}
    if consumers & {"MatMul", "Gemm"}:
        yield (
            "is fused with its MatMul to MatMulNBits at accuracy level 4, which silently rounds "
            "activations to int8; session.qdq_matmulnbits_accuracy_level=0 keeps them"
        )
    if "Transpose" in consumers:
        yield "a transposed dequantised weight is not fused and runs slowly; store it as [in, out]"
    if "Add" in consumers:
        yield "a sum of dequantised weights is not fused; multiply by each and add with Sum"


_NODE_CHECKS: dict[str, Callable[[Any], Iterator[str]]] = {
    "MatMulNBits": _check_matmul_n_bits,
    "DequantizeLinear": _check_dequantize,
}
