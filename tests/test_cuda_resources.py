"""What nvcc makes of the CUDA kernels: registers and memory of each architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import tvm
import tvm_ffi
from cuda_helpers import ARCHITECTURES
from cuda_kernels import known
from tvm import tirx
from tvm.target import Target as TvmTarget
from undense.backend.cuda import nvcc
from undense.backend.cuda.module import cuda_modules, device_code_by
from undense.backend.kernels.attention import Attention
from undense.backend.kernels.cuda.attention import attention
from undense.backend.kernels.cuda.attention_splits import SUM_WARPS
from undense.backend.kernels.cuda.attention_tiling import (
    GREATEST,
    SharedRows,
    few_rows,
    many_rows,
)
from undense.backend.kernels.cuda.norm import norm_step
from undense.backend.kernels.cuda.product import Product
from undense.backend.kernels.cuda.products import Tiling, product_function, tilings
from undense.backend.kernels.cuda.rows import gather_step
from undense.backend.kernels.cuda.warpgroup_rows import WarpgroupRowsTiling
from undense.backend.kernels.cuda.weights import Coded, Dense, Weights
from undense.backend.kernels.lowering import lowering_context
from undense.passes.errors import LoweringError

SIZE = 4096
REGISTERS = 65536
"""Of a multiprocessor, for all of its blocks."""

SHARED = 99 * 1024
"""The most that a block may have on sm_86 and sm_89, which run the code of sm_80."""

SPILLED = 0
"""Bytes of a thread that ptxas may keep in memory to fit one more block, which it does unasked.

An array that is indexed at run time, and so lies in memory, has more.
"""

PRODUCTS: dict[str, tuple[Weights, int]] = {
    "dense-float16": (Dense(known("float16")), 1),
    "codes-4": (Coded(known("float16"), 4, 8, 128), 2),
    "codes-8": (Coded(known("float16"), 8, 128, 128), 2),
    "planes-2": (Coded(known("float16"), 2, 1, 128, 2), 2),
    "dense-float32": (Dense(known("float32")), 1),
    "codes-4-float32": (Coded(known("float32"), 4, 8, 128), 1),
}
"""With the blocks of one row's kernel that a multiprocessor has registers for: dense weights are
under way in more of them."""

HOPPERS: dict[str, Weights] = {
    **{name: weights for name, (weights, _) in PRODUCTS.items() if "float32" not in name},
    "dense-bfloat16": Dense(known("bfloat16")),
    "codes-3": Coded(known("bfloat16"), 3, 4, 32),
    "codes-5": Coded(known("float16"), 5, 13, 128),
    "codes-8-bfloat16": Coded(known("bfloat16"), 8, 128, 128),
    "planes-4": Coded(known("float16"), 4, 8, 128, 2),
}
"""Weights of products by instructions of a warpgroup."""

HOPPER_QUICK = ("dense-float16", "planes-4")

HOPPER_SHARED = 227 * 1024
"""The most that a block may have on sm_90."""

QUICK = ("codes-4",)
OTHERS: dict[str, tuple[Callable[[], Any], int]] = {
    "layer_norm": (lambda: norm_step(SIZE, 1e-5, "float16", centered=True).function, 4),
    "rms_norm": (lambda: norm_step(SIZE, 1e-5, "float32", centered=False).function, 4),
    "gather": (lambda: gather_step(PRODUCTS["codes-4"][0], 32000, SIZE, "int64", ()).function, 16),
}
"""With the blocks that are to fit into a multiprocessor's registers: its 2048 threads."""

HEADS = (
    (64, "float16", 1, None),
    (64, "float16", 4, "float32"),
    (80, "bfloat16", 1, "bool"),
    (96, "float16", 1, None),
    (128, "float16", 4, None),
    (128, "bfloat16", 1, "bool"),
    (160, "float16", 1, None),
    (192, "float16", 8, None),
    (256, "float16", 1, "bool"),
    (64, "float32", 1, None),
    (128, "float32", 1, None),
    (256, "float32", 1, "bool"),
)
"""Size and type of heads, how many share one of the keys, and the type of a mask."""


needs_nvcc = pytest.mark.usefixtures("cuda_compiler")
# The part of TVM that makes CUDA modules comes into a process once: here the emulation's.
makes_modules = pytest.mark.usefixtures("cuda_compiler", "cuda_device")


@cache
def product_of(name: str) -> Product:
    weights, _ = PRODUCTS[name]
    return Product.plain(weights.activation, weights, SIZE, SIZE)


def resources(
    function: Any, architectures: Sequence[str] = ARCHITECTURES
) -> dict[str, list[nvcc.Resources]]:
    """What each kernel of a function needs, by name, on all architectures."""
    sources: list[str] = []

    def code(source: str, architectures: Any) -> bytes:
        sources.append(source)
        return b"not loaded"

    machine = TvmTarget({"kind": "cuda", "arch": architectures[0], "host": {"kind": "llvm"}})
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with device_code_by(code), cuda_modules(architectures), machine, lowering_context():
        tvm.compile(module, target=machine)
    found: dict[str, list[nvcc.Resources]] = {}
    for item in nvcc.resources(sources[0], architectures):
        found.setdefault(item.kernel, []).append(item)
    assert all(len(items) == len(architectures) for items in found.values())
    return found


def check(item: nvcc.Resources, threads: int, blocks: int) -> None:
    """Fails unless so many blocks fit by their registers, and nothing lies in local memory."""
    assert not item.serialized, item
    assert item.registers <= min(255, REGISTERS // (threads * blocks)), item
    assert item.spilled_bytes <= SPILLED, item
    assert item.stack_bytes <= SPILLED, item
    assert item.shared_bytes <= SHARED, item


def shared_bytes(tiling: Tiling, weights: Weights) -> int:
    return tiling.shared_bytes(weights)


@makes_modules
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in PRODUCTS]
)
def test_products_fit_into_registers(name: str) -> None:
    product, (_, blocks) = product_of(name), PRODUCTS[name]
    rules = tilings(product)
    found = resources(product_function(product, rules))
    names = ["main_kernel", *(f"main_kernel_{i}" for i in range(1, len(rules)))]
    assert found.keys() == set(names)
    for number, (kernel, (_, tiling)) in enumerate(zip(names, rules, strict=True)):
        for item in found[kernel]:
            check(item, 32 * tiling.warps, blocks if number == 0 else 1)


@makes_modules
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in HOPPER_QUICK else pytest.mark.slow) for n in HOPPERS],
)
def test_products_of_warpgroups_stay_under_way(name: str) -> None:
    weights = HOPPERS[name]
    product = Product.plain(weights.activation, weights, SIZE, SIZE)
    for _, tiling in tilings(product, warpgroups=True):
        if isinstance(tiling, WarpgroupRowsTiling):
            function = product_function(product, ((None, tiling),))
            ((item,),) = resources(function, ["sm_90a"]).values()
            check(replace(item, shared_bytes=0), 32 * tiling.warps, 1)
            assert tiling.shared_bytes(weights) <= HOPPER_SHARED


SERIALIZED = """
extern "C" __global__ void stored_to_early(const unsigned* a, float* y) {
  extern __shared__ __align__(1024) unsigned x[];
  float sums[64] = {};
  for (int i = 0; i < 4; ++i) {
    undense_wgmma_fence();
    undense_multiply_rows_f16(sums, a, x);
    undense_wgmma_commit();
    sums[i] += 1;
  }
  undense_wgmma_finish(sums, 64);
  for (int i = 0; i < 64; ++i) y[threadIdx.x * 64 + i] = sums[i];
}
"""


@needs_nvcc
def test_products_that_wait_for_each_other_are_told() -> None:
    (item,) = nvcc.resources(SERIALIZED, ["sm_90a"])
    assert item.serialized


@needs_nvcc
def test_no_other_architecture_has_products_of_warpgroups() -> None:
    with pytest.raises(LoweringError, match=r"wgmma.* not supported on .target 'sm_90'"):
        nvcc.resources(SERIALIZED, ["sm_90"])


@makes_modules
@pytest.mark.parametrize("name", OTHERS)
def test_norms_and_gathers_fit_into_registers(name: str) -> None:
    make, blocks = OTHERS[name]
    threads = 2048 // blocks
    for items in resources(make()).values():
        for item in items:
            check(item, threads, blocks)


def allocated_shared(function: Any) -> list[int]:
    """Words of shared memory of each kernel of a function."""
    allocated: list[int] = []

    def note(statement: Any) -> None:
        buffer = statement.buffer
        if buffer.scope() == "shared.dyn":
            allocated.append(int(buffer.shape[0]))

    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, note), order="post")
    return allocated


@pytest.mark.parametrize("warpgroups", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_shared_memory_is_what_the_tilings_say(name: str, warpgroups: bool) -> None:
    product = product_of(name)
    rules = tilings(product, warpgroups)
    allocated = allocated_shared(product_function(product, rules))
    wanted = [shared_bytes(tiling, product.weights) for _, tiling in rules]
    assert sorted(4 * words for words in allocated) == sorted(wanted)
    assert max(wanted) <= (HOPPER_SHARED if warpgroups else SHARED)


def attention_of(size: int, group: int = 1, mask: str | None = None) -> Attention:
    layouts: dict[str, Any] = {"query": "heads", "key": "heads", "value": "heads"}
    if mask is not None:
        layouts |= {"mask": (True, True, True, True), "mask_dtype": mask}
    return Attention(size, size, 8, group, 0.125, **layouts, causal=mask is None)


@makes_modules
@pytest.mark.parametrize(
    ("size", "dtype", "group", "mask"),
    [
        pytest.param(*head, marks=[] if head in (HEADS[0], HEADS[4]) else pytest.mark.slow)
        for head in HEADS
    ],
)
def test_attention_fits_into_registers(size: int, dtype: str, group: int, mask: str | None) -> None:
    spec, activation = attention_of(size, group, mask), known(dtype)
    found = resources(attention(spec, dtype))
    threads = {
        "main_kernel": 32 * few_rows(spec, activation).warps,
        "main_kernel_1": 32 * SUM_WARPS,
        "main_kernel_2": 32 * many_rows(spec, activation).warps,
    }
    assert found.keys() == threads.keys()
    for kernel, items in found.items():
        for item in items:
            check(item, threads[kernel], 2)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("mask", [None, "bool"])
def test_shared_memory_of_attention_is_what_the_tilings_say(dtype: str, mask: str | None) -> None:
    activation = known(dtype)
    for size in range(16, GREATEST + 1, 16):
        spec = attention_of(size, mask=mask)
        tilings = [make(spec, activation) for make in (few_rows, many_rows)]
        words = [SharedRows(tiling, spec, activation).words for tiling in tilings]
        assert max(words) * 4 <= SHARED, size
        if size % 80 == 0:
            sums = SUM_WARPS * (size + 1)
            assert sorted(allocated_shared(attention(spec, dtype))) == sorted([*words, sums])
