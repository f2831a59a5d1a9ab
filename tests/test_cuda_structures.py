"""Every structure in every type of activations: the CUDA kernels compute its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cuda_emulation
import numpy as np
import pytest
from cuda_kernels import DTYPES, Array, array, check_rounded, rounding, sum_error
from kernels import ALL, compiled, lowered, prim_funcs, random_factors
from tvm import tirx
from undense.backend.cuda.nvcc import EMULATED_HEADERS
from undense.backend.kernels.cuda.structures import cuda_kernels, dense_step
from undense.passes.errors import LoweringError
from undense.passes.scheme import parse_scheme
from undense.passes.structures import structures
from undense.passes.structures.base import Factors, Structure

SMALL = (40, 300)
"""Neither side is whole in tiles, chunks or groups."""

ROWS = (0, 1, 9, 33, 65)
ROUNDINGS = 4
"""Of what is summed: of both factors and between them, or of a scale and after each plane."""

FLOAT = [item for item in ALL if item.activations != "int8"]
"""A plan that promises to round activations is refused for GPUs."""

CASES = [
    pytest.param(
        structure,
        DTYPES[number % 3],
        id=f"{structure}-{DTYPES[number % 3]}",
        marks=[] if number % 4 == 0 else pytest.mark.slow,
    )
    for number, structure in enumerate(FLOAT)
]
"""All, of which every fourth is quick; so are those of `SCHEMES`, one of each kind."""

SCHEMES = [
    *("low_rank{rank=7}", "monarch{in_blocks=4,out_blocks=5,rank=2}"),
    *("int_codes{bits=4,group=32,activations=float}", "trit_planes{tied=false,activations=float}"),
    "low_rank{rank=17,factor_bits=8}",
    "trit_planes{planes=2,group=64,activations=float}+residual{rank=9}",
]


def on_cuda(
    structure: Structure,
    factors: Factors,
    dtype: str,
    leading: tuple[str | int, ...] = ("rows",),
    shape: tuple[int, int] = SMALL,
    target: Mapping[str, Any] = cuda_emulation.TARGET,
) -> Callable[[Array], Array]:
    with cuda_emulation.emulated(headers=EMULATED_HEADERS):
        return compiled(structure, factors, shape, leading, target=target, dtype=dtype)


def check(structure: Structure, factors: Factors, x: Array, y: Array) -> None:
    """Fails unless y is the structure's reference but for rounding in its type."""
    dtype = x.dtype.name
    wide = x.astype(np.float64)
    wanted = structure.reference(factors, wide)
    largest = {name: np.abs(factor.astype(np.float64)) for name, factor in factors.items()}
    magnitude = structure.reference(largest, np.abs(wide))
    lost = 2 * sum_error(dtype, x.shape[-1]) + ROUNDINGS * rounding(dtype)
    assert y.dtype == x.dtype
    check_rounded(y, wanted, lost * magnitude)


def resolved(structure: Structure | str, shape: tuple[int, int] = SMALL) -> Structure:
    parsed = parse_scheme(structure) if isinstance(structure, str) else structure
    assert isinstance(parsed, Structure)
    return parsed.resolve(*shape, site="test")


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_structure_has_a_kernel(dtype: str) -> None:
    assert cuda_kernels(dtype).keys() == structures().keys()


def test_other_types_are_refused_with_a_way_out() -> None:
    with pytest.raises(LoweringError, match="float64; compile with dtype float16"):
        cuda_kernels("float64")
    with pytest.raises(LoweringError, match="int8; compile with dtype float16"):
        dense_step(4, 4, "int8")


@pytest.mark.usefixtures("cuda_device")
@pytest.mark.parametrize(("structure", "dtype"), CASES)
def test_every_structure_is_its_reference(structure: Structure, dtype: str) -> None:
    structure = resolved(structure)
    factors = random_factors(structure, SMALL)
    run = on_cuda(structure, factors, dtype)
    for rows in ROWS:
        x = array(dtype, rows, SMALL[1], seed=rows)
        check(structure, factors, x, run(x))


@pytest.mark.usefixtures("cuda_device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_kind_in_every_type(scheme: str, dtype: str) -> None:
    structure = resolved(scheme)
    factors = random_factors(structure, SMALL)
    run = on_cuda(structure, factors, dtype, ("batch", "length"))
    for leading in ((1, 1), (3, 5)):
        x = array(dtype, *leading, SMALL[1])
        check(structure, factors, x, run(x))


@pytest.mark.usefixtures("cuda_device")
@pytest.mark.parametrize(
    ("in_blocks", "out_blocks", "rank"), [(5, 2, 3), (2, 5, 16), (1, 4, 1), (10, 1, 4), (4, 4, 10)]
)
def test_monarch_blocks_of_any_number(in_blocks: int, out_blocks: int, rank: int) -> None:
    shape = (80, 160)
    scheme = f"monarch{{in_blocks={in_blocks},out_blocks={out_blocks},rank={rank}}}"
    structure = resolved(scheme, shape)
    factors = random_factors(structure, shape)
    run = on_cuda(structure, factors, "float16", shape=shape)
    for rows in (1, 40):
        x = array("float16", rows, shape[1])
        check(structure, factors, x, run(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_kernel_keeps_a_dense_weight(scheme: str) -> None:
    shape = (100, 2304)
    structure = resolved(scheme, shape)
    factors = random_factors(structure, shape)
    target = cuda_emulation.TARGET
    module, packed = lowered(structure, factors, shape, target=target, dtype="float16")
    assert sum(tensor.nbytes for tensor in packed.values()) < 2 * shape[0] * shape[1]
    for function in prim_funcs(module).values():
        assert function.attrs["tirx.is_scheduled"]
    types = [
        part
        for block in module["main"].body.blocks
        for binding in block.bindings
        for part in getattr(binding.var.ty, "fields", [binding.var.ty])
    ]
    for intermediate in types:
        rows, _ = intermediate.shape
        assert not isinstance(rows, tirx.IntImm), f"{intermediate} does not depend on x"
