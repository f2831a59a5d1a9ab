"""Every structure in every storage: numpy, ONNX Runtime and the TVM kernel compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import tvm
import tvm_ffi
from helpers import assert_close, one_node_model, run_onnx
from kernels import (
    ALL,
    TARGETS,
    compiled,
    host_has,
    lowered,
    prim_funcs,
    random_factors,
)
from tvm import tirx
from undense.backend.kernels import kernel_for, kernels
from undense.backend.kernels.lowering import lowering_context
from undense.passes.errors import LoweringError
from undense.passes.scheme import parse_scheme
from undense.passes.structures import structures
from undense.passes.structures.base import Structure
from undense.passes.structures.low_rank import LowRank
from undense.passes.structures.trit_planes import TritPlanes

ROWS = (0, 1, 2, 3, 7, 33)
SMALL = (40, 300)
"""The last block of 16 outputs is half full and the last group of 128 is not whole."""

REAL_SHAPES = [
    (1536, 576),
    (100, 36),
    (1, 64),
    *(pytest.param(shape, marks=pytest.mark.slow) for shape in [(576, 576), (192, 576)]),
]
REAL_SCHEMES = [
    "low_rank{ratio=0.5}",
    "low_rank{ratio=0.5,factor_bits=8}",
    "monarch{ratio=0.5,in_blocks=2,out_blocks=1}",
    "int_codes{bits=8}",
    "int_codes{bits=4,group=32,activations=int8}",
    "int_codes{bits=6}",
    "int_codes{bits=6,group=32,activations=int8}",
    "int_codes{bits=3,group=256}",
    "trit_planes{planes=2}",
    "trit_planes{planes=3,pack=base3,activations=int8}",
    "int_codes{bits=4,group=32,activations=int8}+residual{rank=1}",
]


def resolved(structure: Structure | str, shape: tuple[int, int]) -> Structure:
    parsed = parse_scheme(structure) if isinstance(structure, str) else structure
    assert isinstance(parsed, Structure)
    return parsed.resolve(*shape, site="test")


def inputs(*shape: int, seed: int = 0) -> np.ndarray:
    """Rows of different size, one of them zero if there are several."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * rng.uniform(0.1, 10, (*shape[:-1], 1))
    if len(shape) > 1 and shape[0] > 2:
        x[1] = 0
    return x.astype(np.float32)


def test_each_structure_has_a_kernel() -> None:
    assert kernels().keys() == structures().keys()


def cases() -> Iterator[Any]:
    """All of them; of planes with scales of their own two stand for one and for three."""
    for structure in ALL:
        repeats = isinstance(structure, TritPlanes) and not structure.tied and structure.planes != 2
        yield pytest.param(structure, id=str(structure), marks=[pytest.mark.slow] * repeats)


@pytest.mark.parametrize("structure", list(cases()))
def test_numpy_onnx_runtime_and_tvm_agree(structure: Structure) -> None:
    structure = resolved(structure, SMALL)
    factors = random_factors(structure, SMALL)
    run = compiled(structure, factors, SMALL)
    model = one_node_model(structure, factors, *SMALL)
    for rows in ROWS:
        x = inputs(rows, SMALL[1], seed=rows)
        wanted = structure.reference(factors, x.astype(np.float64))
        y = run(x)
        assert y.dtype == np.float32
        assert_close(y, wanted, reduction=SMALL[1])
        assert_close(run_onnx(model, x=x), wanted, reduction=SMALL[1])


@pytest.mark.parametrize("shape", REAL_SHAPES, ids=str)
@pytest.mark.parametrize("scheme", REAL_SCHEMES)
def test_shapes_of_real_layers(scheme: str, shape: tuple[int, int]) -> None:
    if "in_blocks=2" in scheme and shape[1] % 2:
        pytest.skip("two blocks do not divide the inputs")
    structure = resolved(scheme, shape)
    factors = random_factors(structure, shape)
    run = compiled(structure, factors, shape)
    for rows in (1, 13):
        x = inputs(rows, shape[1])
        wanted = structure.reference(factors, x.astype(np.float64))
        assert_close(run(x), wanted, reduction=shape[1])


# A residual has the kernels of its two parts, which stand before it.
@pytest.mark.parametrize("rule", TARGETS)
@pytest.mark.parametrize(
    "scheme", [*REAL_SCHEMES[:-1], pytest.param(REAL_SCHEMES[-1], marks=pytest.mark.slow)]
)
def test_each_rule_computes_the_same(scheme: str, rule: str) -> None:
    target, feature = TARGETS[rule]
    structure = resolved(scheme, SMALL)
    factors = random_factors(structure, SMALL)
    if not host_has(feature):
        with tvm.target.Target(target) as machine, lowering_context():
            tvm.compile(lowered(structure, factors, SMALL, target=target)[0], target=machine)
        pytest.skip(f"this machine compiles but cannot run {feature}")
    run = compiled(structure, factors, SMALL, target=target)
    for rows in ROWS:
        x = inputs(rows, SMALL[1])
        wanted = structure.reference(factors, x.astype(np.float64))
        assert_close(run(x), wanted, reduction=SMALL[1])


@pytest.mark.parametrize(
    ("in_blocks", "out_blocks", "rank"), [(5, 2, 3), (2, 5, 16), (1, 4, 1), (10, 1, 4), (4, 4, 10)]
)
def test_monarch_blocks_of_any_number(in_blocks: int, out_blocks: int, rank: int) -> None:
    scheme = f"monarch{{in_blocks={in_blocks},out_blocks={out_blocks},rank={rank}}}"
    shape = (80, 160)
    structure = resolved(scheme, shape)
    factors = random_factors(structure, shape)
    x = inputs(6, shape[1])
    wanted = structure.reference(factors, x.astype(np.float64))
    assert_close(compiled(structure, factors, shape)(x), wanted, reduction=shape[1])


@pytest.mark.parametrize("scheme", ["low_rank{rank=5}", "trit_planes{planes=2,activations=int8}"])
@pytest.mark.parametrize(
    "leading", [(), (3,), ("b", "s"), ("b", 1), (2, 3), ("b", "s", 2), ("b", "s", "t")], ids=str
)
def test_any_rank(scheme: str, leading: tuple[str | int, ...]) -> None:
    shape = (20, 70)
    structure = resolved(scheme, shape)
    factors = random_factors(structure, shape)
    run = compiled(structure, factors, shape, leading)
    for size in (2, 3):
        lengths = [size if isinstance(dimension, str) else dimension for dimension in leading]
        x = inputs(*lengths, shape[1])
        wanted = structure.reference(factors, x.astype(np.float64))
        assert_close(run(x), wanted, reduction=shape[1])


@pytest.mark.parametrize("scheme", REAL_SCHEMES)
def test_weights_are_never_dense_in_memory(scheme: str) -> None:
    shape = (96, 2304)
    structure = resolved(scheme, shape)
    module, _ = lowered(structure, random_factors(structure, shape), shape)
    tiles: list[int] = []

    def allocated(statement: Any) -> None:
        buffer = statement.buffer
        entries = int(np.prod([int(length) for length in buffer.shape]))
        tiles.append(entries * np.dtype(str(buffer.dtype)).itemsize)

    for function in prim_funcs(module).values():
        tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, allocated), order="post")
    assert max(tiles) <= 4 * shape[0] * shape[1] / 8
    types = [
        part
        for block in module["main"].body.blocks
        for binding in block.bindings
        for part in getattr(binding.var.ty, "fields", [binding.var.ty])
    ]
    assert types
    for intermediate in types:
        rows, _ = intermediate.shape
        assert not isinstance(rows, tirx.IntImm), f"{intermediate} does not depend on x"


@pytest.mark.parametrize("scheme", REAL_SCHEMES)
def test_equal_layers_share_scheduled_functions(scheme: str) -> None:
    structure = resolved(scheme, SMALL)
    factors = random_factors(structure, SMALL)
    one = prim_funcs(lowered(structure, factors, SMALL)[0])
    three = prim_funcs(lowered(structure, factors, SMALL, layers=3)[0])
    assert one.keys() == three.keys()
    for name, function in one.items():
        assert function.attrs["tirx.is_scheduled"]
        tvm.ir.assert_structural_equal(function, three[name])


def test_a_structure_without_kernel_is_refused_with_a_way_out() -> None:
    @dataclass(frozen=True)
    class Other(LowRank):
        kind: ClassVar[str] = "other"

    with pytest.raises(LoweringError, match=r"other .*ort-cpu"):
        kernel_for(Other(rank=1))


def test_a_target_without_kernels_is_refused() -> None:
    structure = resolved("low_rank{rank=3}", SMALL)
    factors = random_factors(structure, SMALL)
    with pytest.raises(LoweringError, match="no kernels for vulkan; choose target llvm or cuda"):
        lowered(structure, factors, SMALL, target={"kind": "vulkan"})
