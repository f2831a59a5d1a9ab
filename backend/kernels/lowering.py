"""Lowers modules with kernels in them, whose buffers need no compacting, in reasonable time."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx

_COMPACTION = "s_tir.CompactBufferAllocation"

_LLVM_DOES = ("tirx.CommonSubexprElim", "s_tir.HoistIfThenElse")


def is_scheduled(function: Any) -> bool:
    """Whether a kernel has fixed the loops of a function already."""
    return bool(function.attrs.get("tirx.is_scheduled", False)) if function.attrs else False


def lowering_context(*, use_cuda_graph: bool = False) -> Any:
    """The pass context to compile in, without passes that take seconds for one kernel.

    Buffers are not compacted: kernels allocate what they need, and functions with schedules are
    compacted by `compacted`. What LLVM does in a tenth of the time is left to it.
    """
    config = {"relax.backend.use_cuda_graph": use_cuda_graph}
    return tvm.transform.PassContext(config=config, disabled_pass=[_COMPACTION, *_LLVM_DOES])


def compacted(module: Any, names: set[str]) -> Any:
    """The module with the buffers of the named functions cut to what a loop uses of them."""
    transform = s_tir.transform
    passes = tvm.transform.Sequential(
        [
            transform.CanonicalizeLoop(),
            transform.LowerCrossThreadReduction(),
            transform.LowerInitBlock(),
            transform.PlanAndUpdateBufferAllocationLocation(),
            transform.ConvertBlocksToOpaque(),
            transform.LiftThreadBinding(),
            transform.CompactBufferAllocation(),
        ]
    )
    chosen = {
        variable: function
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc) and variable.name_hint in names
    }
    if chosen:
        for variable, function in passes(tvm.IRModule(chosen)).functions.items():
            module.update_func(variable, function)
    return module
