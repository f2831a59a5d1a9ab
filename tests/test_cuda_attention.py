"""The attention kernel for GPUs, on the emulated device, against numpy in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import cuda_emulation
import ml_dtypes  # noqa: F401 (makes numpy know bfloat16)
import numpy as np
import pytest
import tvm
from cuda_kernels import known
from numpy.typing import NDArray
from tvm import tirx
from tvm.sym import Analyzer
from undense.backend.cuda.nvcc import EMULATED_HEADERS
from undense.backend.kernels.attention import Attention
from undense.backend.kernels.cuda.attention import attention, fits
from undense.backend.kernels.cuda.attention_arguments import Given, Lengths, workspace
from undense.backend.kernels.cuda.attention_splits import Splits
from undense.backend.kernels.cuda.attention_tiling import ALONE, BLOCKS, FEW, SHARE
from undense.backend.kernels.lowering import lowering_context

pytestmark = pytest.mark.usefixtures("cuda_device")

EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
RNG = np.random.default_rng(0)


def reference(spec: Attention, arrays: list[NDArray[Any]]) -> NDArray[np.float64]:
    """`[batch, queries, heads, value_size]`."""
    placed = []
    for array, layout in zip(arrays, (spec.query, spec.key, spec.value), strict=False):
        wide = array.astype(np.float64)
        placed.append(wide if layout == "heads" else wide.swapaxes(1, 2))
    query, key, value = placed
    key, value = (np.repeat(item, spec.group, axis=1) for item in (key, value))
    scores = spec.scale * query @ key.swapaxes(-1, -2)
    if spec.mask is not None:
        mask = arrays[3]
        if spec.mask_dtype == "bool":
            scores = np.where(mask, scores, -np.inf)
        else:
            scores = scores + mask.astype(np.float64)
    if spec.causal:
        queries, keys = scores.shape[-2:]
        seen = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
        scores = np.where(seen, scores, -np.inf)
    peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - np.where(np.isinf(peak), 0, peak))
        total = powers.sum(axis=-1, keepdims=True)
        if spec.allow_empty:
            total = np.where(total == 0, 1, total)
        weights = powers / total
    return np.moveaxis(weights @ value, 1, 2)


def check(
    spec: Attention,
    dtype: str,
    batch: int,
    queries: int,
    keys: int,
    order: str = "forward",
    mask: NDArray[Any] | None = None,
) -> None:
    heads = spec.heads * spec.group

    def given(layout: str, count: int, length: int, size: int) -> NDArray[Any]:
        shape = (batch, count, length, size)
        array = RNG.standard_normal(shape).astype(dtype)
        return array if layout == "heads" else np.ascontiguousarray(array.swapaxes(1, 2))

    arrays = [
        given(spec.query, heads, queries, spec.size),
        given(spec.key, spec.heads, keys, spec.size),
        given(spec.value, spec.heads, keys, spec.value_size),
    ]
    if mask is not None:
        arrays.append(mask)
    device, target = tvm.cuda(0), tvm.target.Target(cuda_emulation.TARGET)
    with cuda_emulation.emulated(order, EMULATED_HEADERS), target, lowering_context():
        function = attention(spec, dtype).with_attr("global_symbol", "main")
        built = tvm.compile(tvm.IRModule({"main": function}), target=target)
        y = tvm.runtime.tensor(np.zeros((batch, queries, heads, spec.value_size), dtype), device)
        parts = tvm.runtime.tensor(np.full(workspace(spec), np.nan, np.float32), device)
        built["main"](*[tvm.runtime.tensor(array, device) for array in arrays], y, parts)
    expected = reference(spec, arrays)
    got = y.numpy().astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    there = ~np.isnan(expected)
    bound = rounding_bound(spec, arrays, dtype)
    assert np.abs(got - expected)[there].max(initial=0.0) <= bound


def rounding_bound(spec: Attention, arrays: list[NDArray[Any]], dtype: str) -> float:
    """The weights and the result are rounded to the type, the scores are float32 sums.

    An error of a score changes its weight by as much, relatively.
    """
    query, key, value = (np.abs(array.astype(np.float64)).max(initial=0.0) for array in arrays[:3])
    largest_score = spec.scale * query * key * np.sqrt(spec.size)
    scores = 2 * EPSILON["float32"] * (1 + largest_score)
    return float(value * (EPSILON[dtype] + scores))


def spec_of(**options: Any) -> Attention:
    default: dict[str, Any] = {"size": 32, "value_size": 32, "heads": 2, "group": 1, "scale": 0.2}
    layouts = {"query": "heads", "key": "heads", "value": "heads"}
    return Attention(**{**default, **layouts, **options})


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(
    ("batch", "queries", "keys"), [(1, 1, 1), (2, 16, 33), (1, 1, 300), (2, 17, 64), (1, 70, 130)]
)
def test_lengths(dtype: str, batch: int, queries: int, keys: int):
    check(spec_of(), dtype, batch, queries, keys, order="shuffled:1")


SIZES = [(64, 64), (128, 64), (96, 32), (16, 112), (80, 80), (160, 160), (192, 16), (256, 256)]


@pytest.mark.parametrize(
    ("dtype", "size", "value_size"),
    [
        *(("float16", *sizes) for sizes in SIZES),
        *(("float32", *sizes) for sizes in SIZES[::7]),
        *(pytest.param("float32", *sizes, marks=pytest.mark.slow) for sizes in SIZES[1:-1]),
    ],
)
def test_sizes(dtype: str, size: int, value_size: int):
    for queries in (3, 70):
        check(spec_of(size=size, value_size=value_size, heads=1), dtype, 1, queries, 45)


@pytest.mark.parametrize("layouts", [("rows", "rows", "rows"), ("rows", "heads", "heads")])
@pytest.mark.parametrize("group", [3, 4])
def test_layouts_and_shared_heads(layouts: tuple[str, str, str], group: int):
    query, key, value = layouts
    spec = spec_of(query=query, key=key, value=value, group=group)
    for queries in (1, 5, 23):
        check(spec, "float16", 2, queries, 37, order="backward")


@pytest.mark.parametrize(
    "there", [(True, True, True, True), (False, False, True, True), (True, False, False, True)]
)
@pytest.mark.parametrize(
    "kind", ["bool", pytest.param("float32", marks=pytest.mark.slow), "float16"]
)
def test_masks(there: tuple[bool, bool, bool, bool], kind: str):
    batch, queries, keys = 2, 19, 41
    spec = spec_of(group=2, mask=there, mask_dtype=kind, allow_empty=True)
    full = (batch, 4, queries, keys)
    shape = [length if has else 1 for length, has in zip(full, there, strict=True)]
    keep = RNG.random(shape) < 0.7
    keep[..., 0, :] = False
    mask = keep
    if kind != "bool":
        mask = np.where(keep, RNG.standard_normal(shape), -np.inf).astype(kind)
    for dtype in ("float16", "float32"):
        check(spec, dtype, batch, queries, keys, mask=mask)
        check(spec, dtype, batch, 1, keys, mask=mask[:, :, :1] if there[2] else mask)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 70), (9, 9), (40, 40), (33, 200), (130, 130), (90, 20)]
)
def test_causal(group: int, queries: int, keys: int):
    spec = spec_of(group=group, causal=True, allow_empty=queries > keys)
    check(spec, "float16", 2, queries, keys, order="shuffled:2")


def test_causal_with_a_mask_of_keys():
    keep = RNG.random((2, 1, 1, 80)) < 0.7
    spec = spec_of(mask=(True, False, False, True), mask_dtype="bool", causal=True)
    spec = dataclasses.replace(spec, allow_empty=True)
    check(spec, "float32", 2, 80, 80, mask=keep)


def test_rows_of_masked_keys_are_not_numbers_unless_allowed():
    mask = np.zeros((1, 1, 3, 9), bool)
    mask[..., 1:, :4] = True
    spec = spec_of(mask=(False, False, True, True), mask_dtype="bool")
    check(spec, "float32", 1, 3, 9, mask=mask)


@pytest.mark.parametrize("queries", [4, 40])
def test_rows_masked_by_the_lowest_number_are_averages(queries: int):
    lowest = float(np.finfo(np.float32).min)
    mask = np.zeros((2, 1, 1, 24), np.float32)
    mask[0, ..., :20] = lowest
    mask[1] = lowest
    spec = spec_of(mask=(True, False, False, True))
    check(spec, "float32", 2, queries, 24, mask=mask)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, ALONE + 1), (3, 2 * ALONE + 7), (20, ALONE + SHARE)]
)
def test_keys_are_split_over_blocks(dtype: str, queries: int, keys: int):
    spec = spec_of(group=3, heads=1, causal=True)
    assert split_count(spec, 2, queries, keys) > 1
    check(spec, dtype, 2, queries, keys, order="shuffled:3")


@pytest.mark.parametrize(("batch", "keys"), [(1, ALONE), (BLOCKS, ALONE + 9), (0, 9), (2, 0)])
def test_keys_stay_together_where_they_are_few_or_blocks_are_many(batch: int, keys: int):
    spec = spec_of(heads=1, size=16, value_size=16, allow_empty=True)
    assert split_count(spec, batch, 1, keys) == 1
    check(spec, "float16", batch, 1, keys)


@pytest.mark.parametrize("allow_empty", [True, False])
def test_splits_of_masked_keys_count_for_nothing(allow_empty: bool):
    """One row sees the keys of one split, one those of part of a split, one sees none."""
    keys = 2 * ALONE
    mask = np.zeros((1, 1, 3, keys), bool)
    mask[..., 0, SHARE : 2 * SHARE] = True
    mask[..., 1, -SHARE // 3 :] = True
    for kind in ("bool", "float32"):
        given = mask if kind == "bool" else np.where(mask, 0.5, -np.inf).astype(kind)
        spec = spec_of(
            mask=(False, False, True, True), mask_dtype=kind, allow_empty=allow_empty, group=2
        )
        assert split_count(spec, 1, 3, keys) > 2
        check(spec, "float16", 1, 3, keys, mask=given)


def test_a_workspace_holds_all_splits():
    spec = spec_of(heads=3, group=2)
    for batch in (1, 7, 43, 500):
        for queries in (1, 8, 9, FEW // 2):
            for keys in (1, ALONE, ALONE + 1, 5000, 100_000):
                count = split_count(spec, batch, queries, keys)
                places = batch * 3 * -(-queries * 2 // 16) * count
                assert count == 1 or places <= workspace(spec)[0]


def split_count(spec: Attention, batch: int, queries: int, keys: int) -> int:
    """By the expression that the kernels are launched with."""
    lengths = Lengths()
    values = (tirx.const(length, "int64") for length in (batch, queries, keys))
    lengths.batch, lengths.queries, lengths.keys = values
    given = Given(spec, known("float16"), lengths, [None] * (5 + (spec.mask is not None)))
    return int(Analyzer().simplify(Splits(given).count))


def test_large_scores_do_not_overflow():
    check(spec_of(scale=50.0), "float32", 1, 2, 40)


@pytest.mark.parametrize("queries", [2, 40])
def test_the_scale_may_be_negative(queries: int):
    check(spec_of(scale=-0.3, causal=True), "float16", 1, queries, 75)


@pytest.mark.parametrize(
    ("size", "value_size", "dtype", "expected"),
    [
        (64, 64, "float16", True),
        (256, 80, "bfloat16", True),
        (256, 256, "float32", True),
        (272, 64, "float16", False),
        (64, 72, "float16", False),
        (64, 64, "int8", False),
    ],
)
def test_sizes_without_a_kernel(size: int, value_size: int, dtype: str, expected: bool):
    assert fits(spec_of(size=size, value_size=value_size), dtype) is expected
