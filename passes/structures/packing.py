"""Codes to bytes and back: 2-, 4- and 8-bit fields, 3-bit codes, and five trits a byte.

Every function packs the last axis and leaves the others as they are. The byte layouts stated here
are those of the files and of the kernels; the inverse of each is exact.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_POWERS_OF_3 = np.array([81, 27, 9, 3, 1], np.uint16)
_FIRST_BITS = np.arange(0, 24, 3)


def pack_fields(codes: NDArray[np.integer], bits: Literal[2, 4, 8]) -> Bytes:
    """`byte[i] = Σ_j codes[i·p + j] · 2^(bits·j)` with `p = 8 / bits`: low bits first.

    This is the order of MatMulNBits and of ONNX's 4-bit tensors: the low nibble is the even one.

    Args:
        codes: `[..., n]` in `0 .. 2^bits - 1`; n is a multiple of `8 / bits`.
        bits: the width of a field.

    Returns:
        uint8 `[..., n · bits / 8]`.
    """
    each = 8 // bits
    fields = codes.astype(np.uint8).reshape(*codes.shape[:-1], codes.shape[-1] // each, each)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: Bytes = np.bitwise_or.reduce(fields << shifts, axis=-1)
    return packed


def unpack_fields(packed: Bytes, bits: Literal[2, 4, 8]) -> Bytes:
    """The inverse of `pack_fields`: uint8 `[..., bytes · 8 / bits]`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields: Bytes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return fields.reshape(*packed.shape[:-1], packed.shape[-1] * (8 // bits))


def pack_three_bits(codes: NDArray[np.integer]) -> Bytes:
    """Eight codes in three bytes: bit `3j + b` of the 24-bit little-endian word is bit b of code j.

    Args:
        codes: `[..., n]` in 0 .. 7; a last word that is not full is filled with zeros.

    Returns:
        uint8 `[..., 3 · ceil(n / 8)]`.
    """
    words = _padded(codes.astype(np.uint32), 8)
    word = np.bitwise_or.reduce(words << _FIRST_BITS.astype(np.uint32), axis=-1)
    octets = (word[..., None] >> np.array([0, 8, 16], np.uint32)) & np.uint32(255)
    packed: Bytes = octets.astype(np.uint8).reshape(*codes.shape[:-1], 3 * word.shape[-1])
    return packed


def unpack_three_bits(packed: Bytes, count: int) -> Bytes:
    """The inverse of `pack_three_bits`: uint8 `[..., count]`."""
    words = packed.shape[-1] // 3
    octets = packed.astype(np.uint32).reshape(*packed.shape[:-1], words, 3)
    word = octets[..., 0] | (octets[..., 1] << np.uint32(8)) | (octets[..., 2] << np.uint32(16))
    codes: Bytes = ((word[..., None] >> _FIRST_BITS.astype(np.uint32)) & np.uint32(7)).astype(
        np.uint8
    )
    return codes.reshape(*packed.shape[:-1], 8 * words)[..., :count]


def pack_base3(trits: NDArray[np.integer]) -> Bytes:
    """Five trits in a byte, `q = ceil(256/243 · Σ_i (t_i + 1) · 3^(4-i))`: 1.6 bits a trit.

    Stretching 243 values over 256 makes the digits readable by multiplications alone, with no
    division: `digit_i = ((q · 3^i mod 256) · 3) >> 8`, i = 0 for the first trit.

    Args:
        trits: `[..., n]` in -1 .. 1; a last byte that is not full is filled with zero trits.

    Returns:
        uint8 `[..., ceil(n / 5)]`.
    """
    digits = _padded(trits.astype(np.int16), 5) + 1
    value = (digits.astype(np.uint16) * _POWERS_OF_3).sum(axis=-1, dtype=np.uint32)
    packed: Bytes = ((value * 256 + 242) // 243).astype(np.uint8)
    return packed


def unpack_base3(packed: Bytes, count: int) -> NDArray[np.int8]:
    """The inverse of `pack_base3`: int8 trits `[..., count]`."""
    rotated = (packed[..., None] * _POWERS_OF_3[::-1]) & np.uint16(255)
    trits = ((rotated * np.uint16(3)) >> np.uint16(8)).astype(np.int8) - np.int8(1)
    return trits.reshape(*packed.shape[:-1], 5 * packed.shape[-1])[..., :count]


def _padded(codes: NDArray[np.integer], multiple: int) -> NDArray[np.integer]:
    """`[..., ceil(n / multiple), multiple]`, filled up with zeros."""
    missing = -codes.shape[-1] % multiple
    filled = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    return filled.reshape(*codes.shape[:-1], filled.shape[-1] // multiple, multiple)
