"""The dense kernel, the norms and the attention: any number of rows, any shape, any CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import tvm
from graphs import normal
from helpers import assert_close
from kernels import TARGETS, built, host_has
from numpy.typing import NDArray
from tvm.target import Target
from undense.backend.kernels.attention import Attention, attention
from undense.backend.kernels.blocks import even_group, interleave
from undense.backend.kernels.dense import dense_step
from undense.backend.kernels.factored import Factored, factored_step
from undense.backend.kernels.finish import Finish
from undense.backend.kernels.lowering import lowering_context
from undense.backend.kernels.norm import norm_step
from undense.backend.kernels.targets import ROWS as ROWS_TUNED
from undense.backend.kernels.targets import float_tiling, tuned
from undense.backend.kernels.tasks import lowest_part
from undense.backend.kernels.tir import Argument, load

Array = NDArray[Any]
ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 31, 33, 127)
"""Each height of a tile, primes, and the edges of tiles."""


@pytest.mark.parametrize("shape", [(384, 384), (40, 300), (1, 7), (16, 1), (112, 1000)], ids=str)
def test_dense_computes_every_number_of_rows(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    run = built(lambda: dense_step(*shape).function)
    for rows in ROWS:
        x, y = normal(rows, shape[1]), np.full((rows, shape[0]), np.nan, np.float32)
        run(x, interleave(weight), y)
        assert_close(y, x.astype(np.float64) @ weight.T.astype(np.float64), reduction=shape[1])


@pytest.mark.parametrize("rule", TARGETS)
def test_dense_on_every_cpu(rule: str) -> None:
    target, feature = TARGETS[rule]
    shape = (72, 130)
    run = built(lambda: dense_step(*shape).function, target)
    if not host_has(feature):
        pytest.skip(f"this machine compiles but cannot run {feature}")
    weight = normal(*shape)
    for rows in (1, 5, 13):
        x, y = normal(rows, shape[1]), np.zeros((rows, shape[0]), np.float32)
        run(x, interleave(weight), y)
        assert_close(y, x.astype(np.float64) @ weight.T.astype(np.float64), reduction=shape[1])


def test_float16_weights_are_multiplied_in_float32() -> None:
    weight = normal(48, 96).astype(np.float16)
    run = built(lambda: dense_step(48, 96, "float16").function)
    x, y = normal(5, 96), np.zeros((5, 48), np.float32)
    run(x, interleave(weight), y)
    assert_close(y, x.astype(np.float64) @ weight.T.astype(np.float64), reduction=96)


@pytest.mark.parametrize("out_features", [32, 40])
def test_outputs_are_finished_before_they_are_stored(out_features: int) -> None:
    def arguments(rows: Any) -> list[Argument]:
        return [
            Argument("bias", (out_features,), "float32"),
            Argument("other", (rows, out_features), "float32"),
        ]

    def apply(buffers: Sequence[Any], value: Any, row: Any, column: Any) -> Any:
        bias, other = buffers
        return (value + load(bias, column)) * load(other, row, column)

    step = dense_step(out_features, 24)
    assert step.finish is not None
    run = built(partial(step.finish, Finish(arguments, apply, "float32")))
    weight, bias = normal(out_features, 24), normal(out_features)
    for rows in (1, 9):
        x, other = normal(rows, 24), normal(rows, out_features)
        y = np.zeros_like(other)
        run(x, interleave(weight), bias, other, y)
        wanted = (x.astype(np.float64) @ weight.T + bias) * other
        assert_close(y, wanted, reduction=24)


def test_tilings_of_records_compute_the_same() -> None:
    shape, weight = (64, 96), normal(64, 96)
    records = {
        ("dense", *shape, 1): {"group": 2, "chains": 1},
        ("dense", *shape, 8): {"panels": (1, 1), "unroll": 4, "chunk": 32},
    }
    with tuned(records):
        run = built(lambda: dense_step(*shape).function)
    for rows in (1, 2, 8, 9, 130):
        x, y = normal(rows, 96), np.zeros((rows, 64), np.float32)
        run(x, interleave(weight), y)
        assert_close(y, x.astype(np.float64) @ weight.T.astype(np.float64), reduction=96)


@pytest.mark.parametrize("chunk", [640, pytest.param(10, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(
    ("in_blocks", "out_blocks", "rank", "width"),
    [(1, 1, 90, 100), (3, 2, 5, 100), (4, 3, 20, 100), (2, 2, 5, 600)],
)
def test_two_factors_in_blocks(
    in_blocks: int, out_blocks: int, rank: int, width: int, chunk: int
) -> None:
    spec = Factored(out_blocks * width, in_blocks * 24, in_blocks, out_blocks, rank)
    first = normal(in_blocks, out_blocks * rank, 24)
    second = normal(out_blocks, width, in_blocks * rank, seed=1)
    fields = {"chunk": chunk}
    records = {("some", spec.out_features, spec.in_features, rows): fields for rows in ROWS_TUNED}
    with tuned(records):
        run = built(lambda: factored_step("some", spec, ("first", "second")).function)
    for rows in (0, 1, 2, 7, 64, 129):
        x, y = normal(rows, spec.in_features), np.zeros((rows, spec.out_features), np.float32)
        run(x, interleave(first), interleave(second), y)
        inputs = x.astype(np.float64).reshape(rows, in_blocks, 24)
        hidden = np.einsum("rbi,bji->rbj", inputs, first)
        hidden = hidden.reshape(rows, in_blocks, out_blocks, rank).transpose(0, 2, 1, 3)
        hidden = hidden.reshape(rows, out_blocks, in_blocks * rank)
        wanted = np.einsum("rbi,bji->rbj", hidden, second).reshape(rows, spec.out_features)
        assert_close(y, wanted, reduction=24 * in_blocks * rank)


@pytest.mark.parametrize("most", [1, 4, 6, 64, 128])
@pytest.mark.parametrize("least", [1, 2, 3, 9, 33, 129])
def test_the_lowest_part_is_one_that_there_is(least: int, most: int) -> None:
    lowest = {rows // math.ceil(rows / most) for rows in range(least, 10 * (least + most))}
    assert lowest_part(least, most) == min(lowest)


def test_one_block_a_task_where_that_is_asked_for() -> None:
    assert even_group(7, 1) == 1


@pytest.mark.parametrize("blocks", range(1, 40))
def test_groups_of_blocks_leave_two_threads_about_the_same_work(blocks: int) -> None:
    size = even_group(blocks, 4)
    assert min(blocks, 2) <= size <= min(blocks, 4)
    rounds = math.ceil(math.ceil(blocks / size) / 2)
    assert rounds * size <= max(0.67 * blocks + 0.5, 2)


@pytest.mark.parametrize(
    ("blocks", "times", "size"),
    [(12, 1, 3), (36, 1, 3), (24, 1, 4), (7, 1, 4), (9, 4, 3), (5, 1, 3)],
)
def test_groups_of_blocks(blocks: int, times: int, size: int) -> None:
    assert even_group(blocks, 4, times) == size


@pytest.mark.parametrize("centered", [True, False], ids=["layer_norm", "rms_norm"])
@pytest.mark.parametrize("features", [1, 15, 64, 300, 384])
def test_norms(features: int, centered: bool) -> None:
    run = built(lambda: norm_step(features, 1e-5, centered=centered).function)
    for rows in (0, 1, 33):
        x = normal(rows, features) + 3
        y = np.zeros_like(x)
        run(x, y)
        wide = x.astype(np.float64)
        if centered:
            wide = wide - wide.mean(axis=1, keepdims=True)
        wanted = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5)
        assert_close(y, wanted, reduction=features)


CASES = [
    # batch, heads, group, queries, keys, size, layouts, mask axes, mask dtype
    (1, 2, 1, 7, 7, 32, ("heads", "heads", "heads"), None, "float32"),
    (2, 3, 3, 1, 65, 64, ("heads", "heads", "heads"), (0, 0, 1, 1), "bool"),
    (2, 2, 1, 40, 70, 16, ("rows", "rows", "rows"), (1, 0, 0, 1), "float32"),
    (1, 1, 4, 33, 130, 48, ("rows", "heads", "rows"), (1, 1, 1, 1), "float32"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case: tuple[Any, ...]) -> None:
    batch, heads, group, queries, keys, size, layouts, axes, dtype = case
    mask = None if axes is None else tuple(map(bool, axes))
    spec = Attention(size, size, heads, group, 0.3, *layouts, mask, dtype, allow_empty=True)
    run = built(lambda: attention(spec, float_tiling()))
    q, k, v = (
        normal(batch, count, length, size)
        for count, length in ((heads * group, queries), (heads, keys), (heads, keys))
    )
    given = [
        array if layout == "heads" else np.ascontiguousarray(array.transpose(0, 2, 1, 3))
        for array, layout in zip((q, k, v), layouts, strict=True)
    ]
    scores = np.einsum("bhqd,bhkd->bhqk", q.astype(np.float64), np.repeat(k, group, axis=1)) * 0.3
    if mask is not None:
        full = (batch, heads * group, queries, keys)
        shape = [length if there else 1 for length, there in zip(full, mask, strict=True)]
        kept = np.random.default_rng(3).random(shape) > 0.4
        kept[0, 0, 0] = False  # nothing is left of this row
        added = np.where(kept, 0, -np.inf).astype(np.float32)
        scores = scores + added
        given.append(kept if dtype == "bool" else added)
    peak = scores.max(axis=-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isinf(peak), 0, peak))
    total = powers.sum(axis=-1, keepdims=True)
    weights = powers / np.where(total == 0, 1, total)
    wanted = np.einsum("bhqk,bhkd->bqhd", weights, np.repeat(v, group, axis=1))
    y = np.full((batch, queries, heads * group, size), np.nan, np.float32)
    run(*given, y)
    assert_close(y, wanted, reduction=size + keys)


def test_dot_products_of_bytes_are_the_cpus_own() -> None:
    from undense.backend.kernels import kernel_for
    from undense.passes.scheme import parse_scheme
    from undense.passes.structures.base import Structure

    structure = parse_scheme("int_codes{bits=4,activations=int8}")
    assert isinstance(structure, Structure)
    shapes = {"codes": (1, 4, 16, 16), "scales": (1, 4, 1, 16)}
    found = {}
    for name, cpu in {"vnni": "cascadelake", "madd": "x86-64-v3"}.items():
        machine = Target({"kind": "llvm", "mcpu": cpu})
        with machine, lowering_context():
            *_, step = kernel_for(structure).steps(structure, 64, 128, shapes)
            function = step.function.with_attr("global_symbol", "main")
            found[name] = tvm.compile(tvm.IRModule({"main": function}), target=machine)
    text = {name: module.mod.inspect_source("asm") for name, module in found.items()}
    assert "vpdpbusd" in text["vnni"]
    assert "vpmaddubsw" in text["madd"]
    assert "vpdpbusd" not in text["madd"]
