"""How weights lie in device memory: every one once, zeros elsewhere, and codes bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cuda_kernels import DTYPES, known, offset_of, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from undense.backend.kernels.cuda.fragments import (
    CHUNK,
    TILE,
    chunks,
    fragments,
    row_tiles,
)
from undense.backend.kernels.cuda.weights import BITS, Coded, Dense

LENGTHS = st.integers(1, 150)
WORD_BITS = {2: 64, 3: 96, 4: 128, 5: 160, 8: 256}
"""Of a lane's 32 codes."""


def numbered(*shape: int) -> NDArray[np.int64]:
    """1, 2, 3, …: what is filled is 0."""
    return np.arange(1, 1 + np.prod(shape)).reshape(shape)


def pairs_of(words: NDArray[np.uint32], bits: int, tile: int, pair: int) -> NDArray[np.uint32]:
    """`undense_pair` of undense.cuh: two stored codes in the halves of a word."""
    even = bits - bits % 2
    mask = np.uint32((2**even - 1) * 0x00010001)
    if even == 2:
        low = words[..., tile // 2] >> np.uint32(8 * (tile % 2) + 2 * pair)
    elif even == 4:
        low = words[..., tile] >> np.uint32(4 * pair)
    else:
        low = words[..., 2 * tile + pair // 2] >> np.uint32(8 * (pair % 2))
    if bits % 2 == 0:
        return low & mask
    high = (words[..., -1] >> np.uint32(4 * tile + pair)) & np.uint32(0x00010001)
    return (low & mask) | (high << np.uint32(even))


def decoded(stored: Coded, packed: NDArray[np.int32]) -> NDArray[np.int64]:
    """Codes `[..., 4 tiles, 32 lanes, 8]` from a chunk's words, as a lane decodes them."""
    words = packed.view(np.uint32)
    parts, start = [], 0
    for width in stored.sections:
        section = words[..., start * 32 : (start + width) * 32]
        parts.append(section.reshape(*section.shape[:-1], 32, width))
        start += width
    lanes = np.concatenate(parts, axis=-1)
    found = np.empty((*lanes.shape[:-2], 4, 32, 8), np.int64)
    for tile in range(4):
        for pair in range(4):
            both = pairs_of(lanes, stored.bits, tile, pair)
            found[..., tile, :, 2 * pair] = both & np.uint32(0xFFFF)
            found[..., tile, :, 2 * pair + 1] = both >> np.uint32(16)
    return found - stored.offset


@settings(max_examples=40, deadline=None)
@given(outputs=LENGTHS, inputs=LENGTHS)
def test_every_weight_has_one_place(outputs: int, inputs: int) -> None:
    found = fragments(numbered(outputs, inputs))
    assert found.shape == (row_tiles(outputs), chunks(inputs), 4, 32, 8)
    assert row_tiles(outputs) * TILE - outputs < TILE
    assert chunks(inputs) * CHUNK - inputs < CHUNK
    placed = found[found != 0]
    np.testing.assert_array_equal(np.sort(placed), numbered(outputs, inputs).ravel())


@settings(max_examples=40, deadline=None)
@given(output=st.integers(0, 99), k=st.integers(0, 149), dtype=st.sampled_from(DTYPES))
def test_a_weight_lies_where_its_lane_reads_it(output: int, k: int, dtype: str) -> None:
    weight = np.zeros((100, 150))
    weight[output, k] = 1
    (tile, chunk, small, lane, value) = np.argwhere(fragments(weight))[0]
    group, member = divmod(int(lane), 4)
    pair, last = divmod(int(value), 2)
    assert 16 * tile + 8 * (pair % 2) + group == output
    assert 64 * chunk + 16 * member + 4 * small + 2 * (pair // 2) + last == k


@settings(max_examples=30, deadline=None)
@given(blocks=st.integers(1, 3), outputs=LENGTHS, inputs=LENGTHS, dtype=st.sampled_from(DTYPES))
def test_dense_weights_are_packed_as_the_arguments_say(
    blocks: int, outputs: int, inputs: int, dtype: str
) -> None:
    stored = Dense(known(dtype))
    weight = np.random.default_rng(outputs).standard_normal((blocks, outputs, inputs))
    rounded = weight.astype(dtype)
    packed = stored.pack(weight)
    (argument,) = stored.arguments(blocks, outputs, inputs)
    assert (packed.shape, packed.dtype.name) == (argument.shape, argument.dtype)
    assert packed.flags.c_contiguous
    np.testing.assert_array_equal(
        np.sort(packed[packed != 0].astype(np.float64)),
        np.sort(rounded[rounded != 0].astype(np.float64)),
    )


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    planes=st.integers(1, 3),
    outputs=st.integers(1, 70),
    inputs=LENGTHS,
    group=st.integers(1, 16).map(lambda count: 16 * count),
)
def test_codes_decode_to_themselves(
    bits: int, planes: int, outputs: int, inputs: int, group: int
) -> None:
    stored = Coded(known("float16"), bits, offset_of(bits), group, planes)
    codes = random_codes(bits, planes, outputs, inputs, seed=outputs * inputs)
    scales = np.random.default_rng(inputs).random((planes, outputs, -(-inputs // group)))
    packed = stored.pack(codes, scales.astype(np.float32))
    for argument in stored.arguments(1, outputs, inputs):
        tensor = packed[argument.name]
        assert (tensor.shape, tensor.dtype.name) == (argument.shape, argument.dtype)
    np.testing.assert_array_equal(decoded(stored, packed["codes"][:, 0]), fragments(codes))
    assert 32 * stored.words == WORD_BITS[bits]
    restored = packed["scales"][:, 0].swapaxes(-1, -2).reshape(planes, -1, scales.shape[-1])
    wanted = np.pad(scales, [(0, 0), (0, -outputs % TILE), (0, 0)]).astype(np.float32)
    units = packed["unit"].reshape(-1, 1)
    np.testing.assert_array_equal(restored * units, wanted)


@pytest.mark.parametrize("largest", [1e-38, 1e-30, 0.75, 1.0, 3.0, 3e38])
def test_scales_are_stored_relative_to_a_power_of_two(largest: float) -> None:
    stored = Coded(known("float16"), 4, 8, 32)
    # Of two outputs, each in two groups.
    scales = np.array([[[largest, largest / 4], [largest / 2**12, largest / 2**14]]], np.float32)
    packed = stored.pack(np.zeros((1, 2, 64), np.int8), scales)
    units = packed["unit"][0, 0, :2]
    assert (np.frexp(units)[0] == 0.5).all()
    relative = packed["scales"][0, 0, 0, :, :2]
    np.testing.assert_array_equal(relative * units, scales[0].T)
    assert (relative.max(axis=0) >= 1).all()
    assert (relative < 2).all()
    assert relative.min() > float(ml_dtypes.finfo("float16").smallest_normal)


def test_scales_of_zero_have_a_unit() -> None:
    stored = Coded(known("float16"), 4, 8, 32)
    packed = stored.pack(np.zeros((1, 2, 32), np.int8), np.zeros((1, 2, 1), np.float32))
    assert (packed["unit"] == 1).all()
    assert not packed["scales"].any()
