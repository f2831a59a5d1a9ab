"""How kernels are cut up for a family of CPUs: ordered rules, of which the first one decides."""

from __future__ import annotations

from tvm.target import Target
from tvm.target.codegen import target_has_features

from ...passes.errors import LoweringError
from .dots import Tiling
from .gemm import FloatTiling


def avx512(target: Target) -> Tiling | None:
    """32 registers of 16 floats."""
    if not target_has_features("avx512bw", target):
        return None
    return Tiling(rows=(8, 4, 1), add_pairs="llvm.x86.avx512.pmaddw.d.512", pair_lanes=16)


def avx2(target: Target) -> Tiling | None:
    """16 registers of 8 floats."""
    if not target_has_features("avx2", target):
        return None
    return Tiling(rows=(4, 1), add_pairs="llvm.x86.avx2.pmadd.wd", pair_lanes=8)


def any_cpu(target: Target) -> Tiling | None:
    """Plain vector code, which LLVM cuts to the registers that there are."""
    return Tiling()


RULES = (avx512, avx2, any_cpu)
"""Ordered: the first that answers decides."""


def tiling() -> Tiling:
    """The tiling of the first rule that knows `Target.current()`; without one, of any CPU.

    Raises:
        LoweringError: the target is not a CPU.
    """
    target = Target.current(allow_none=True)
    if target is None:
        return Tiling()
    if target.kind.name != "llvm":
        raise LoweringError(
            f"structured layers have no kernels for {target.kind.name} yet; choose target llvm"
        )
    return next(found for rule in RULES if (found := rule(target)) is not None)


def float_avx512(target: Target) -> FloatTiling | None:
    """6 rows of 4 panels: 24 sums and 4 weights in 32 registers."""
    if not target_has_features("avx512bw", target):
        return None
    return FloatTiling((4, 4, 4, 4, 4, 4))


def float_avx2(target: Target) -> FloatTiling | None:
    """6 rows of one panel of two registers: 12 sums in 16 registers."""
    if not target_has_features("avx2", target):
        return None
    return FloatTiling((4, 2, 2, 1, 1, 1))


def float_any(target: Target) -> FloatTiling | None:
    """As for AVX2."""
    return FloatTiling()


FLOAT_RULES = (float_avx512, float_avx2, float_any)


def float_tiling() -> FloatTiling:
    """The same for products of floats."""
    target = Target.current(allow_none=True)
    if target is None:
        return FloatTiling()
    return next(found for rule in FLOAT_RULES if (found := rule(target)) is not None)
