"""onnx_ir model -> Relax -> scheduled primitive functions -> machine code."""

from __future__ import annotations

import shutil
from typing import Any

import onnx_ir as ir

from ...passes.errors import MissingDependencyError
from ..target import Target
from .module import TvmModule
from .schedule import apply_schedules, is_scheduled
from .walker import Walk

_OPAQUE = 8
"""Relax's operator pattern for what is not to be fused with anything."""


def check_toolchain() -> None:
    """Refuses to start long work that would end without a linker.

    Raises:
        MissingDependencyError: no C++ compiler on the path to link `module.so` with.
    """
    if not any(shutil.which(name) for name in ("g++", "clang++", "gcc", "clang", "cc")):
        raise MissingDependencyError(
            "linking module.so needs a C++ compiler and none is on the path; install g++ or clang, "
            "or compile with --target ort-cpu, which needs none"
        )


def build(model: ir.Model, target: Target) -> TvmModule:
    """The model compiled for a TVM target; weights stay apart from the code.

    Raises:
        LoweringError: an operator, attribute or type that is not covered; names the node.
        MissingDependencyError: no C++ compiler.
    """
    import tvm

    check_toolchain()
    machine = target.tvm()
    with machine:
        walk = Walk(model)
        module = apply_schedules(_fused(walk.module))
        executable = tvm.compile(module, target=machine, relax_pipeline=_lower())
    builder = walk.builder
    return TvmModule(
        executable=executable,
        weights=builder.parameters.arrays(),
        inputs=walk.inputs,
        outputs=walk.outputs,
        dimension_bounds=builder.bounds,
    )


def _fused(module: Any) -> Any:
    """Element-wise operators fused into their producers, one PrimFunc a group."""
    import tvm
    from tvm.relax import transform

    # A reshape stays an operator: the virtual machine makes it a view, which a loop would copy.
    module = transform.LegalizeOps({"relax.reshape": lambda _builder, call: call})(module)
    for variable, function in module.functions.items():
        if isinstance(function, tvm.tirx.PrimFunc) and is_scheduled(function):
            # Fusing would tear the loops that a kernel has fixed.
            module.update_func(variable, function.with_attr("op_pattern", _OPAQUE))
    passes = (
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    )
    return tvm.transform.Sequential(passes)(module)


def _lower() -> Any:
    """Relax's own lowering for CPUs: memory planned once, shapes computed on the host."""
    import tvm
    from tvm.relax import transform

    return tvm.transform.Sequential(
        [
            transform.RewriteDataflowReshape(),
            transform.ToNonDataflow(),
            transform.RemovePurityChecking(),
            transform.CallTIRRewrite(),
            transform.StaticPlanBlockMemory(),
            transform.LowerAllocTensor(),
            transform.KillAfterLastUse(),
            transform.LowerRuntimeBuiltin(),
            transform.ComputePrimValue(),
            transform.VMShapeLower(),
            transform.AttachGlobalSymbol(),
        ]
    )
