"""exp, erf and tanh of float32 as polynomials, which vector loops evaluate in vector registers.

LLVM has no vector forms of its own and would call the scalar ones of the C library lane by lane;
on GPUs those are what is wanted.
The coefficients are minimax fits of the named functions over the named intervals (Lawson's
iteration on Chebyshev nodes); results are within two units in the last place, which the tests
check against float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from .gpu import on_gpu

Expr = Any

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""Their sum is ln 2, and the product of the first with a small integer is exact."""

_LEAST, _MOST = -104.0, 89.0
"""Beyond these exp is 0 and infinite in float32."""

_EXP = (0.00139505, 0.00836889, 0.04166621, 0.16666519, 0.50000001)
"""(exp(r) − 1 − r) / r² for |r| ≤ ln 2 / 2."""

_ERF = (
    7.88911954e-05,
    -8.02084128e-04,
    5.18953534e-03,
    -2.68544446e-02,
    1.12836002e-01,
    -3.76126271e-01,
    1.12837917,
)
"""erf(x) / x in x² for |x| ≤ 1."""

_LOG_ERFC = (
    -2.16868130e-05,
    4.41335891e-04,
    -4.20455918e-03,
    2.52082486e-02,
    -1.08418563e-01,
    -6.33219908e-01,
    -1.12957842,
    1.88038172e-04,
)
"""ln(1 − erf(x)) for 1 ≤ x ≤ 4."""

_TANH = (62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0)
"""tanh(x) / x in x², its series."""


def exp(x: Expr) -> Expr:
    """`e^x`; of other dtypes than float32 by the C library."""
    if on_gpu():
        return _by_library("exp", x)
    if dtype_of(x) != "float32":
        return te.exp(x)
    bounded = te.max(te.min(x, _float(_MOST)), _float(_LEAST))
    power = te.nearbyint(bounded * _float(_LOG2_E))
    rest = bounded - power * _float(_LN2_HIGH) - power * _float(_LN2_LOW)
    result = _horner(_EXP, rest) * rest * rest + rest + _float(1.0)
    # In two factors, since 2^power alone is no float32 at either end.
    whole = power.astype("int32")
    half = whole >> 1
    result = result * _power_of_two(half) * _power_of_two(whole - half)
    return tirx.Select(tirx.isnan(x), x, result)


def erf(x: Expr) -> Expr:
    """`2/√π ∫ e^(−t²) dt` from 0 to x; of other dtypes than float32 by the C library."""
    if on_gpu():
        return _by_library("erf", x)
    if dtype_of(x) != "float32":
        return te.erf(x)
    size = te.abs(x)
    inner = x * _horner(_ERF, x * x)
    bounded = te.min(size, _float(4.0))
    outer = _float(1.0) - exp(_horner(_LOG_ERFC, bounded))
    signed = tirx.Select(x < _float(0.0), -outer, outer)
    return tirx.Select(size >= _float(1.0), signed, inner)


def tanh(x: Expr) -> Expr:
    """±(1 − e)/(1 + e) with e = exp(−2|x|), and the series near 0, where that cancels."""
    if on_gpu():
        return _by_library("tanh", x)
    one, zero = _like(1.0, x), _like(0.0, x)
    size = te.abs(x)
    e = exp(_like(-2.0, x) * size)
    large = (one - e) / (one + e)
    signed = tirx.Select(x < zero, -large, large)
    return tirx.Select(size < _like(0.25, x), x * _horner(_TANH, x * x), signed)


def _by_library(name: str, x: Expr) -> Expr:
    """A function of CUDA's library, to a few units in the last place of float32 or float64."""
    dtype = dtype_of(x)
    wide = dtype if dtype == "float64" else "float32"
    called = name if wide == "float64" else f"{name}f"
    return tirx.call_pure_extern(wide, called, x.astype(wide)).astype(dtype)


def dtype_of(expression: Expr) -> str:
    """The dtype of a TE tensor or of a scalar expression."""
    dtype = getattr(expression, "dtype", None)
    return str(expression.ty.dtype if dtype is None else dtype)


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    first, *others = coefficients
    result: Expr = _like(first, x)
    for coefficient in others:
        result = result * x + _like(coefficient, x)
    return result


def _power_of_two(exponent: Expr) -> Expr:
    return tirx.reinterpret("float32", (exponent + 127) << 23)


def _like(number: float, expression: Expr) -> Expr:
    return tirx.const(number, dtype_of(expression))


def _float(number: float) -> Expr:
    return tirx.const(number, "float32")
