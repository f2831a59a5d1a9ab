"""Shared by the tests of the CUDA kernels: run one on the emulated device, and bound its error.

The bounds are those of the arithmetic, for each output by itself: what float32 sums lose, what
rounding the weights to the type of the activations does, and one rounding of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cuda_emulation
import ml_dtypes
import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.target import Target
from undense.backend.cuda.nvcc import EMULATED_HEADERS
from undense.backend.kernels.cuda.dtypes import Activation, activation
from undense.backend.kernels.cuda.product import Product
from undense.backend.kernels.cuda.products import product_function, tilings
from undense.backend.kernels.cuda.weights import Coded, Dense
from undense.backend.kernels.lowering import lowering_context

Array = NDArray[Any]
DTYPES = ("float16", "bfloat16", "float32")
FLOAT32 = 2.0**-24
"""The rounding of float32, relative."""

SPLIT = 2.0**-19
"""What a product of float32 values as sums of two TF32 values lacks at most.

The product of the low parts, below 2⁻²⁰, and of each low part what TF32 cuts off, below 2⁻²¹.
"""

_SPREAD = 8
"""Standard deviations of a sum of roundings; the worst of a test's outputs lies below 5."""


def known(dtype: str) -> Activation:
    """The type by its name."""
    found = activation(dtype)
    assert found is not None
    return found


def rounding(dtype: str) -> float:
    """The relative rounding of a type."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def smallest(dtype: str) -> float:
    """The rounding of what lies below its normal numbers."""
    return float(ml_dtypes.finfo(dtype).smallest_subnormal) / 2


def array(dtype: str, *shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Normal values, rounded to a type."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(dtype)


def on_device(function: Any) -> Callable[..., None]:
    """A PrimFunc compiled for the emulated device; the call fills its last argument."""
    machine = Target(cuda_emulation.TARGET)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with cuda_emulation.emulated(headers=EMULATED_HEADERS), machine, lowering_context():
        run = tvm.compile(module, target=machine)["main"]

    def call(*arrays: Array, order: str = "forward") -> None:
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(a), tvm.cuda(0)) for a in arrays]
        with cuda_emulation.emulated(order, EMULATED_HEADERS):
            run(*tensors)
        arrays[-1][...] = tensors[-1].numpy()

    return call


@dataclass(frozen=True)
class Weight:
    """A matrix as the kernels read it, and as it is.

    Attributes:
        stored: the kernel's arguments.
        exact: what they stand for, `[outputs, inputs]` in float64.
        magnitude: the sum of the magnitudes of what is added up for each weight.
        error: what each weight may differ by where it is rounded to the type of x.
    """

    product: Product
    stored: list[Array]
    exact: Array
    magnitude: Array
    error: Array

    def compiled(self) -> Callable[..., Array]:
        """The product as a function of x."""
        run = on_device(product_function(self.product, tilings(self.product)))
        dtype = self.product.activation.dtype

        def call(x: Array, order: str = "forward") -> Array:
            # What the kernel leaves out stays NaN.
            y = np.full((len(x), self.product.columns), np.nan).astype(dtype)
            run(x, *self.stored, y, order=order)
            return y

        return call

    def check(self, x: Array, y: Array) -> None:
        """Fails unless y is `x Ŵᵀ` but for rounding."""
        dtype = self.product.activation.dtype
        assert y.dtype == np.dtype(dtype)
        wide = x.astype(np.float64)
        lost = sum_error(dtype, self.product.depth) * self.magnitude + self.error
        check_rounded(y, wide @ self.exact.T, np.abs(wide) @ lost.T)


def sum_error(dtype: str, count: int) -> float:
    """What a float32 sum of products of a type may lack, relative to the sum of magnitudes."""
    split = SPLIT if dtype == "float32" else 0.0
    return split + _SPREAD * FLOAT32 * (2 + np.sqrt(count))


def check_rounded(y: Array, wanted: Array, lost: Array | float) -> None:
    """Fails unless y is `wanted`, off by no more than `lost`, and then rounded to the type of y."""
    assert y.shape == wanted.shape
    dtype = y.dtype.name
    with np.errstate(over="ignore"):
        rounded = wanted.astype(dtype).astype(np.float64)
    infinite = np.isinf(rounded)
    got = y.astype(np.float64)
    np.testing.assert_array_equal(got[infinite], rounded[infinite])
    bound = lost + rounding(dtype) * (np.abs(wanted) + lost) + smallest(dtype)
    with np.errstate(invalid="ignore"):
        excess = np.where(infinite, 0.0, np.abs(got - wanted) / bound)
    worst = float(excess.max(initial=0.0)) if not np.isnan(excess).any() else np.nan
    assert worst <= 1, f"an output is off by {worst:.3g} times what rounding explains"


def dense(dtype: str, outputs: int, inputs: int, *, seed: int = 1, scale: float = 1.0) -> Weight:
    """A dense weight of normal values."""
    stored = Dense(known(dtype))
    weight = array(dtype, outputs, inputs, seed=seed, scale=scale)
    exact = weight.astype(np.float64)
    product = Product.plain(known(dtype), stored, outputs, inputs)
    return Weight(product, [stored.pack(weight[None])], exact, np.abs(exact), np.zeros_like(exact))


def offset_of(bits: int) -> int:
    """A stored code's zero: the middle, but for the 27 values of three tied trits."""
    return 13 if bits == 5 else 2 ** (bits - 1)


def random_codes(bits: int, *shape: int, seed: int = 2) -> NDArray[np.int8]:
    """All codes of so many bits."""
    low = -offset_of(bits)
    found = np.random.default_rng(seed).integers(low, low + 2**bits, shape)
    return found.astype(np.int8)


def coded(
    dtype: str,
    bits: int,
    outputs: int,
    inputs: int,
    *,
    group: int = 64,
    planes: int = 1,
    scales: Array | None = None,
    codes: NDArray[np.int8] | None = None,
) -> Weight:
    """A coded weight, by default of random codes and scales of many sizes."""
    stored = Coded(known(dtype), bits, offset_of(bits), group, planes)
    if codes is None:
        codes = random_codes(bits, planes, outputs, inputs)
    groups = -(-inputs // group)
    if scales is None:
        scales = 2.0 ** np.random.default_rng(3).uniform(-6, 0, (planes, outputs, groups))
    scales = np.asarray(scales, np.float32)
    packed = stored.pack(codes, scales)
    parts = codes * np.repeat(scales.astype(np.float64), group, axis=-1)[..., :inputs]
    magnitude = np.abs(parts).sum(0)
    # A scale is rounded, and the sum after each plane.
    low = smallest(dtype) * packed["unit"].reshape(-1, 1)[:outputs].astype(np.float64)
    error = (1 + planes) * rounding(dtype) * magnitude + low * (1 + np.abs(codes).sum(0))
    product = Product.plain(known(dtype), stored, outputs, inputs)
    arrays = [packed[name] for name in ("codes", "scales", "unit")]
    return Weight(product, arrays, parts.sum(0), magnitude, error)
