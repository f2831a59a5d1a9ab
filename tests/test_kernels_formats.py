"""Stored bytes: decoding them gives the codes exactly, and they are as few as promised."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import ALL, random_factors
from undense.backend.kernels import Kernel, kernel_for
from undense.backend.kernels.blocks import LANES, block_count, deinterleave, interleave
from undense.backend.kernels.codes import CodesKernel
from undense.backend.kernels.formats import (
    Base3Trits,
    EightBits,
    Format,
    FourBits,
    SixBits,
    ThreeBits,
    TiedTrits,
    TwoBitTrits,
)
from undense.passes.scheme import parse_scheme
from undense.passes.structures.base import Structure

RANGES = [
    (EightBits(), -128, 127, 8),
    (SixBits(), -32, 31, 6),
    (FourBits(), -8, 7, 4),
    (ThreeBits(), -4, 3, 3),
    (TwoBitTrits(), -1, 1, 2),
    (Base3Trits(), -1, 1, 1.6),
    (TiedTrits(TwoBitTrits(), 1), -1, 1, 2),
    (TiedTrits(TwoBitTrits(), 2), -4, 4, 4),
    (TiedTrits(TwoBitTrits(), 3), -13, 13, 6),
    (TiedTrits(Base3Trits(), 2), -4, 4, 3.2),
    (TiedTrits(Base3Trits(), 3), -13, 13, 4.8),
]
every_format = pytest.mark.parametrize(
    ("layout", "low", "high", "bits"), RANGES, ids=[str(case[0]) for case in RANGES]
)
STORED = [item for item in ALL if isinstance(kernel_for(item), CodesKernel)]


def decoded(layout: Format, rows: np.ndarray, group: int, length: int) -> np.ndarray:
    """Codes `[..., length]` from rows of bytes, by the operations of the kernels."""
    units = rows.reshape(*rows.shape[:-1], -1, layout.size)
    quads = np.stack(layout.quads(list(np.moveaxis(units, -1, 0))), axis=-1)
    octets = np.ascontiguousarray(quads.astype(np.int32)).view(np.uint8)
    codes = octets.reshape(*rows.shape[:-1], -1).astype(np.int16) - layout.offset
    if layout.continuous:
        return codes[..., :length]
    stride = layout.units(group) * layout.codes
    starts = range(0, codes.shape[-1], stride)
    parts = [codes[..., start : start + min(stride, group)] for start in starts]
    return np.concatenate(parts, axis=-1)[..., :length]


@every_format
def test_every_unit_decodes_to_its_codes(layout: Format, low: int, high: int, bits: float) -> None:
    rng = np.random.default_rng(0)
    random = rng.integers(low, high + 1, (500, layout.codes))
    constant = np.repeat(np.arange(low, high + 1)[:, None], layout.codes, axis=1)
    codes = np.concatenate([random, constant]).astype(np.int8)
    words = layout.encode_groups(codes, layout.codes)
    assert words.dtype == np.int32
    assert words.shape == (len(codes), layout.size)
    np.testing.assert_array_equal(decoded(layout, words, layout.codes, layout.codes), codes)
    assert 32 * layout.size / layout.codes == bits
    assert int(codes.min()) + layout.offset == 0
    assert int(codes.max()) + layout.offset == layout.greatest


def test_all_243_bytes_of_five_trits_decode_exactly() -> None:
    axes = np.meshgrid(*[np.arange(-1, 2)] * 5, indexing="ij")
    digits = np.stack([axis.ravel() for axis in axes], axis=1).astype(np.int8)
    codes = np.repeat(digits[:, :, None], 4, axis=2).reshape(243, 20)
    words = Base3Trits().encode_groups(codes, 20)
    assert len(np.unique(words)) == 243
    np.testing.assert_array_equal(decoded(Base3Trits(), words, 20, 20), codes)


@every_format
@pytest.mark.parametrize(("length", "group"), [(300, 128), (7, 32), (64, 16), (33, 32), (1, 16)])
def test_groups_start_at_a_fresh_unit_or_run_on(
    layout: Format, low: int, high: int, bits: float, length: int, group: int
) -> None:
    codes = np.random.default_rng(1).integers(low, high + 1, (3, length)).astype(np.int8)
    rows = layout.encode_groups(codes, group)
    full, rest = divmod(length, group)
    if layout.continuous:
        full, rest = 0, length
    assert rows.shape[-1] == layout.size * (full * layout.units(group) + layout.units(rest))
    np.testing.assert_array_equal(decoded(layout, rows, group, length), codes)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 48])
def test_blocks_of_lanes_are_reversible(rows: int) -> None:
    matrix = np.random.default_rng(2).standard_normal((2, rows, 5)).astype(np.float32)
    blocks = interleave(matrix)
    assert blocks.shape == (2, block_count(rows), 5, LANES)
    np.testing.assert_array_equal(deinterleave(blocks, rows), matrix)
    lane, block = (rows - 1) % LANES, (rows - 1) // LANES
    np.testing.assert_array_equal(blocks[1, block, :, lane], matrix[1, -1])
    assert not blocks[:, block, :, lane + 1 :].any()


@pytest.mark.parametrize("structure", STORED, ids=str)
def test_packed_tensors_hold_the_factors_exactly(structure: Structure) -> None:
    shape = (21, 300)
    factors = random_factors(structure, shape)
    kernel: Kernel[Structure] = kernel_for(structure)
    assert isinstance(kernel, CodesKernel)
    source = kernel.source(structure)
    packed = kernel.pack(structure, factors)
    assert list(packed) == ["codes", "scales"]
    rows = deinterleave(packed["codes"], shape[0])
    codes = decoded(source.format, rows, source.group, shape[1])
    wanted = factors["planes"] if "planes" in factors else factors["codes"][None]
    np.testing.assert_array_equal(codes, wanted)
    scales = deinterleave(packed["scales"], shape[0])
    np.testing.assert_array_equal(scales, factors["scales"].reshape(scales.shape))
    for tensor, argument in zip(
        packed.values(), source.arguments(block_count(shape[0]), shape[1]), strict=True
    ):
        assert (tensor.shape, str(tensor.dtype)) == (argument.shape, argument.dtype)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("int_codes{bits=8}", 8),
        ("int_codes{bits=6}", 6),
        ("int_codes{bits=4}", 4),
        ("int_codes{bits=3}", 3),
        ("trit_planes{planes=2}", 4),
        ("trit_planes{planes=2,pack=2bit}", 4),
        ("trit_planes{planes=3}", 6),
        ("trit_planes{planes=1}", 2),
        # 13 words for 256 trits of a plane.
        ("trit_planes{planes=2,pack=base3}", 2 * 13 * 32 / 256),
        ("trit_planes{planes=3,pack=base3,tied=false}", 3 * 13 * 32 / 256),
        ("trit_planes{planes=2,tied=false}", 4),
    ],
)
def test_stored_bits_of_a_weight(scheme: str, bits: float) -> None:
    structure, shape = parse_scheme(scheme), (32, 256)
    assert isinstance(structure, Structure)
    packed = kernel_for(structure).pack(structure, random_factors(structure, shape))
    assert 8 * packed["codes"].nbytes == bits * shape[0] * shape[1]
