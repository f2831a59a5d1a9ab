"""Rows of an embedding from the tensors that the product reads."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import one_node_model, run_onnx
from kernels import compiled, lowered, prim_funcs, random_factors
from undense.passes.errors import LoweringError
from undense.passes.scheme import parse_scheme
from undense.passes.structures.base import Structure

SHAPE = (37, 300)
SCHEMES = [f"int_codes{{bits={bits},group={group}}}" for bits in (3, 4, 8) for group in (32, 128)]


def structure_of(scheme: str) -> Structure:
    structure = parse_scheme(scheme)
    assert isinstance(structure, Structure)
    return structure.resolve(*SHAPE, site="test")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_every_row_is_exact(scheme: str, dtype: str) -> None:
    structure = structure_of(scheme)
    factors = random_factors(structure, SHAPE)
    indices = np.concatenate([np.arange(SHAPE[0]), [36, 0, 36]]).astype(dtype)
    rows = compiled(structure, factors, SHAPE, gather=dtype)(indices)
    assert rows.dtype == np.float32
    wanted = structure.reference_rows(factors, indices, np.dtype(np.float32))
    np.testing.assert_array_equal(rows, wanted)
    model = one_node_model(structure, factors, *SHAPE, gather=True)
    np.testing.assert_array_equal(run_onnx(model, x=indices.astype(np.int64)), wanted)


@pytest.mark.parametrize("leading", [(), ("b",), ("b", "s"), (2, "s", 1)], ids=str)
def test_indices_of_any_rank(leading: tuple[str | int, ...]) -> None:
    structure = structure_of("int_codes{bits=4}")
    factors = random_factors(structure, SHAPE)
    gather = compiled(structure, factors, SHAPE, leading, gather="int64")
    for size in (0, 3):
        lengths = [size if isinstance(dimension, str) else dimension for dimension in leading]
        indices = np.random.default_rng(size).integers(0, SHAPE[0], lengths)
        wanted = structure.reference_rows(factors, indices, np.dtype(np.float32))
        np.testing.assert_array_equal(gather(indices), wanted)


def test_negative_indices_count_from_the_end_and_others_are_clamped() -> None:
    structure = structure_of("int_codes{bits=8}")
    factors = random_factors(structure, SHAPE)
    gather = compiled(structure, factors, SHAPE, gather="int64")
    asked = np.array([-1, -37, -38, 37, 10**12, -(10**12)])
    given = np.array([36, 0, 0, 36, 36, 0])
    np.testing.assert_array_equal(gather(asked), gather(given))


def test_the_embedding_and_the_head_read_one_tensor() -> None:
    structure = structure_of("int_codes{bits=4}")
    factors = random_factors(structure, SHAPE)
    head, packed = lowered(structure, factors, SHAPE)
    rows, same = lowered(structure, factors, SHAPE, gather="int64")
    assert packed.keys() == same.keys()
    types = [
        [str(parameter.ty) for parameter in module["main"].params[1:]] for module in (head, rows)
    ]
    assert types[0] == types[1]
    assert prim_funcs(head).keys() == {"int_codes"}
    assert prim_funcs(rows).keys() == {"int_codes_gather"}


@pytest.mark.parametrize("scheme", ["low_rank{rank=3}", "trit_planes{planes=2}"])
def test_other_forms_refuse_to_gather(scheme: str) -> None:
    structure = structure_of(scheme)
    with pytest.raises(LoweringError, match=f"{structure.kind}.*int_codes"):
        lowered(structure, random_factors(structure, SHAPE), SHAPE, gather="int64")
