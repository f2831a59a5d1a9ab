"""Bytes are as documented, and unpacking gives back every code."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from undense.passes.structures.packing import (
    pack_base3,
    pack_fields,
    pack_three_bits,
    unpack_base3,
    unpack_fields,
    unpack_three_bits,
)

FIELDS: tuple[Literal[2, 4, 8], ...] = (2, 4, 8)
quick = settings(max_examples=40, deadline=None)


def codes(low: int, high: int, multiple: int = 1) -> st.SearchStrategy[NDArray[np.int8]]:
    """Arrays of rank 1 to 3 whose last axis is a multiple, and may be empty."""
    shapes = st.tuples(
        st.lists(st.integers(0, 3), max_size=2), st.integers(0, 12).map(lambda n: n * multiple)
    ).map(lambda parts: (*parts[0], parts[1]))
    return shapes.flatmap(
        lambda shape: arrays.arrays(np.int16, shape, elements=st.integers(low, high))
    )


def test_the_first_field_is_in_the_low_bits() -> None:
    assert pack_fields(np.array([0x1, 0x2, 0xF, 0x0]), 4).tolist() == [0x21, 0x0F]
    assert pack_fields(np.array([1, 2, 3, 0]), 2).tolist() == [0b00_11_10_01]
    assert pack_fields(np.array([7, 255]), 8).tolist() == [7, 255]


def test_eight_three_bit_codes_are_one_little_endian_word() -> None:
    given_codes = np.array([1, 2, 3, 4, 5, 6, 7, 0])
    word = sum(int(code) << (3 * j) for j, code in enumerate(given_codes))
    assert bytes(pack_three_bits(given_codes)) == word.to_bytes(3, "little")


@pytest.mark.parametrize("bits", FIELDS)
@given(data=st.data())
@quick
def test_fields_come_back(bits: Literal[2, 4, 8], data: st.DataObject) -> None:
    original = data.draw(codes(0, 2**bits - 1, multiple=8 // bits))
    packed = pack_fields(original, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (*original.shape[:-1], original.shape[-1] * bits // 8)
    np.testing.assert_array_equal(unpack_fields(packed, bits), original)


@given(original=codes(0, 7))
@quick
def test_three_bit_codes_come_back(original: NDArray[Any]) -> None:
    count = original.shape[-1]
    packed = pack_three_bits(original)
    assert packed.dtype == np.uint8
    assert packed.shape == (*original.shape[:-1], 3 * -(-count // 8))
    np.testing.assert_array_equal(unpack_three_bits(packed, count), original)


@given(original=codes(-1, 1))
@quick
def test_trits_come_back(original: NDArray[Any]) -> None:
    count = original.shape[-1]
    packed = pack_base3(original)
    assert packed.dtype == np.uint8
    assert packed.shape == (*original.shape[:-1], -(-count // 5))
    np.testing.assert_array_equal(unpack_base3(packed, count), original)


def test_all_243_bytes_of_five_trits() -> None:
    patterns = np.array(list(itertools.product((-1, 0, 1), repeat=5)))
    packed = pack_base3(patterns)
    assert packed.shape == (243, 1)
    assert len(set(packed.ravel().tolist())) == 243
    for number, (byte, trits) in enumerate(zip(packed.ravel().tolist(), patterns, strict=True)):
        # The patterns count up in base three, the first trit being the most significant.
        assert byte == -(-number * 256 // 243)
        digits = [((byte * 3**i % 256) * 3) >> 8 for i in range(5)]
        assert [digit - 1 for digit in digits] == trits.tolist()
    np.testing.assert_array_equal(unpack_base3(packed, 5), patterns)
