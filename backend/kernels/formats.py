"""How codes lie in memory, and the few operations that decode them inside a kernel.

A *quad* is four neighbouring codes of one output, each plus the offset of the format, in the bytes
of an int32, the first in the lowest: what the dot-product instructions take. A *unit* is a few
stored words that decode to a few quads. `quads` works alike on vectors (16 outputs) and scalars.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...passes.structures.trit_planes import split_trits

Expr = Any
Codes = NDArray[np.int8]
Words = NDArray[np.int32]
Octets = NDArray[np.uint8]


def quads_of(count: int) -> int:
    """Quads that hold `count` codes."""
    return -(-count // 4)


@dataclass(frozen=True)
class Format(ABC):
    """`codes` consecutive codes in `size` int32 words.

    Attributes:
        continuous: units run on through a row; else each group starts at a fresh one.
    """

    continuous: ClassVar[bool] = False

    @property
    @abstractmethod
    def codes(self) -> int:
        """Codes of a unit, a multiple of 4."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Words of a unit."""

    @property
    @abstractmethod
    def offset(self) -> int:
        """What is added to a code before it is stored, the greatest negative one."""

    @property
    @abstractmethod
    def greatest(self) -> int:
        """The greatest stored code."""

    @abstractmethod
    def encode(self, stored: Octets) -> Octets:
        """Quads of stored codes `[..., units, codes / 4, 4]` to words `[..., units, size, 4]`."""

    @abstractmethod
    def quads(self, unit: list[Expr]) -> list[Expr]:
        """The quads of one unit."""

    def units(self, count: int) -> int:
        """Units that hold `count` codes."""
        return -(-count // self.codes)

    def encode_groups(self, codes: Codes, group: int) -> Words:
        """Rows of codes `[..., n]` to rows of words."""
        length = codes.shape[-1]
        step = length if self.continuous else group
        parts = [self._words(codes[..., start : start + step]) for start in range(0, length, step)]
        return np.concatenate(parts, axis=-1)

    def _words(self, codes: Codes) -> Words:
        missing = -codes.shape[-1] % self.codes
        padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
        stored = (padded.astype(np.int16) + self.offset).astype(np.uint8)
        quads = stored.reshape(*codes.shape[:-1], -1, self.codes // 4, 4)
        words = np.ascontiguousarray(self.encode(quads)).view(np.int32)
        return words.reshape(*codes.shape[:-1], -1)


@dataclass(frozen=True)
class EightBits(Format):
    """One code a byte, −128 … 127."""

    codes, size, offset, greatest = 4, 1, 128, 255

    def encode(self, stored: Octets) -> Octets:
        """The quads themselves."""
        return stored

    def quads(self, unit: list[Expr]) -> list[Expr]:
        """The word."""
        return unit


class Fields(Format):
    """All codes of one word, each in `bits` bits of a byte: its quads one above the other."""

    bits: ClassVar[int]

    size = 1

    def encode(self, stored: Octets) -> Octets:
        """The first quad in the lowest bits."""
        return _fields(stored, self.bits)

    def quads(self, unit: list[Expr]) -> list[Expr]:
        """Shifts and masks."""
        (word,) = unit
        return [_field(word, self.bits * j, 2**self.bits - 1) for j in range(8 // self.bits)]

    def indices(self, unit: list[Expr]) -> list[Expr]:
        """For each code an int32 whose low bits are the stored code, among others above."""
        (word,) = unit
        shifts = [
            8 * octet + self.bits * quad for quad in range(8 // self.bits) for octet in range(4)
        ]
        return [word >> shift if shift else word for shift in shifts]

    def code_of(self, index: Expr) -> Expr:
        """The code that the low bits of an int32 stand for."""
        return (index & (2**self.bits - 1)) - self.offset


@dataclass(frozen=True)
class FourBits(Fields):
    """Two codes −8 … 7 a byte: those of the first quad in the low nibbles."""

    bits = 4
    codes, offset, greatest = 8, 8, 15


class LowAndHigh(Format):
    """Codes in three words: low bits in two of them, half as many high bits in the third."""

    low: ClassVar[int]

    size = 3

    def encode(self, stored: Octets) -> Octets:
        """Low bits of the first half of the quads, of the other half, and the high bits of all."""
        low, high = stored & np.uint8(2**self.low - 1), stored >> np.uint8(self.low)
        half = 8 // self.low
        parts = [(low[..., :half, :], self.low), (low[..., half:, :], self.low)]
        parts.append((high, self.low // 2))
        return np.concatenate([_fields(part, bits) for part, bits in parts], axis=-2)

    def quads(self, unit: list[Expr]) -> list[Expr]:
        """The bits put together."""
        *words, last = unit
        half, above = 8 // self.low, self.low // 2
        low = [_field(w, self.low * j, 2**self.low - 1) for w in words for j in range(half)]
        high = [_field(last, above * j, 2**above - 1) for j in range(2 * half)]
        return [below | (upper << self.low) for below, upper in zip(low, high, strict=True)]


@dataclass(frozen=True)
class ThreeBits(LowAndHigh):
    """32 codes −4 … 3, the low two bits apart from the high one."""

    low = 2
    codes, offset, greatest = 32, 4, 7


@dataclass(frozen=True)
class SixBits(LowAndHigh):
    """16 codes −32 … 31, the low four bits apart from the high two."""

    low = 4
    codes, offset, greatest = 16, 32, 63


@dataclass(frozen=True)
class TwoBitTrits(Fields):
    """Four trits a byte, one of each of four quads."""

    bits = 2
    codes, offset, greatest = 16, 1, 2


@dataclass(frozen=True)
class Base3Trits(Format):
    """Five trits a byte, one of each of five quads: 1.6 bits a trit.

    A byte holds its digits' value stretched over 256, so that decoding only multiplies: the next
    digit is the carry of three times the rest.
    """

    continuous: ClassVar[bool] = True
    codes, size, offset, greatest = 20, 1, 1, 2

    def encode(self, stored: Octets) -> Octets:
        """Five quads a word."""
        value = np.zeros(stored[..., 0, :].shape, np.uint16)
        for j in range(5):
            value = value * 3 + stored[..., j, :]
        return ((value * 256 + 242) // 243).astype(np.uint8)[..., None, :]

    def quads(self, unit: list[Expr]) -> list[Expr]:
        """Two bytes at a time, in halves of the word, which the product with three fits into."""
        (word,) = unit
        even, odd = word & 0x00FF00FF, (word >> 8) & 0x00FF00FF
        found = []
        for _ in range(5):
            even, odd = even * 3, odd * 3
            found.append(((even >> 8) & 0x00FF00FF) | (odd & 0x03000300))
            even, odd = even & 0x00FF00FF, odd & 0x00FF00FF
        return found


@dataclass(frozen=True)
class TiedTrits(Format):
    """The planes of tied codes side by side: a unit of the first plane, of the second, ...

    Attributes:
        plane: the format of one plane.
        planes: K, for codes `Σ_k 3^(K-1-k) t_k`.
    """

    plane: Format
    planes: int

    @property
    def continuous(self) -> bool:  # type: ignore[override]
        """As the plane's."""
        return self.plane.continuous

    @property
    def codes(self) -> int:
        """Those of a unit of one plane."""
        return self.plane.codes

    @property
    def size(self) -> int:
        """A unit of each plane."""
        return self.plane.size * self.planes

    @property
    def offset(self) -> int:
        """All trits −1."""
        return int(3**self.planes - 1) // 2

    @property
    def greatest(self) -> int:
        """All trits 1."""
        return int(3**self.planes) - 1

    def encode(self, stored: Octets) -> Octets:
        """The trits of each plane, encoded one behind the other."""
        trits = split_trits((stored.astype(np.int16) - self.offset).astype(np.int8), self.planes)
        return np.concatenate([self.plane.encode((t + 1).astype(np.uint8)) for t in trits], axis=-2)

    def quads(self, unit: list[Expr]) -> list[Expr]:
        """The digits of base three put together; no byte overflows."""
        size = self.plane.size
        result, *others = (
            self.plane.quads(unit[start : start + size]) for start in range(0, self.size, size)
        )
        for digits in others:
            result = [quad * 3 + digit for quad, digit in zip(result, digits, strict=True)]
        return result


def _fields(stored: Octets, bits: int) -> Octets:
    """Quads `[..., n, 4]` as fields of one word `[..., 1, 4]`, the first in the lowest bits."""
    shifts = np.arange(stored.shape[-2], dtype=np.uint8)[:, None] * np.uint8(bits)
    packed: Octets = np.bitwise_or.reduce(stored << shifts, axis=-2, keepdims=True)
    return packed


def _field(word: Expr, shift: int, mask: int) -> Expr:
    shifted = word >> shift if shift else word
    return shifted & (mask * 0x01010101)
