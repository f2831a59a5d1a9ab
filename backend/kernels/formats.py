"""How codes lie in bytes, and the few operations that decode them inside a kernel.

The bytes themselves are those of `passes.structures.packing`. A row is packed group by group, so
that each group starts at a fresh byte; the last unit of a group may hold padding. `decode` works
alike on vectors (16 rows at a time) and on scalars.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ...passes.structures import packing
from ...passes.structures.trit_planes import split_trits

Expr = Any
Codes = NDArray[np.int8]
Stored = NDArray[np.uint8 | np.int8]


@dataclass(frozen=True)
class Format(ABC):
    """`codes` consecutive codes in `size` bytes."""

    dtype: ClassVar[Literal["uint8", "int8"]] = "uint8"

    @property
    @abstractmethod
    def codes(self) -> int:
        """Codes of a unit."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of a unit."""

    @abstractmethod
    def encode(self, codes: Codes) -> Stored:
        """`[..., n]`, n a multiple of `codes`, to bytes `[..., n / codes · size]`."""

    @abstractmethod
    def decode(self, unit: list[Expr]) -> list[Expr]:
        """The int32 codes of one unit from its bytes, given as int32."""

    def units(self, count: int) -> int:
        """Units that hold `count` codes."""
        return -(-count // self.codes)

    def encode_groups(self, codes: Codes, group: int) -> Stored:
        """Rows of codes `[..., n]` to rows of bytes, each group of `group` codes on its own."""
        length = codes.shape[-1]
        parts = [
            self.encode(_padded(codes[..., start : start + group], self.codes))
            for start in range(0, length, group)
        ]
        return np.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class EightBits(Format):
    """One int8 code a byte."""

    codes, size = 1, 1
    dtype = "int8"

    def encode(self, codes: Codes) -> Stored:
        """The codes themselves."""
        return codes

    def decode(self, unit: list[Expr]) -> list[Expr]:
        """The byte is the code."""
        return unit


@dataclass(frozen=True)
class FourBits(Format):
    """Two codes −8 … 7 a byte, the even one in the low nibble, stored plus 8."""

    codes, size = 2, 1

    def encode(self, codes: Codes) -> Stored:
        """Two nibbles a byte."""
        return packing.pack_fields(codes + np.int8(8), 4)

    def decode(self, unit: list[Expr]) -> list[Expr]:
        """A mask and a shift."""
        (byte,) = unit
        return [(byte & 15) - 8, (byte >> 4) - 8]


@dataclass(frozen=True)
class ThreeBits(Format):
    """Eight codes −4 … 3 in three bytes, stored plus 4."""

    codes, size = 8, 3

    def encode(self, codes: Codes) -> Stored:
        """24-bit words."""
        return packing.pack_three_bits(codes + np.int8(4))

    def decode(self, unit: list[Expr]) -> list[Expr]:
        """The word put together, then shifts."""
        low, middle, high = unit
        word = low | (middle << 8) | (high << 16)
        return [((word >> 3 * j) & 7) - 4 for j in range(8)]


@dataclass(frozen=True)
class TwoBitTrits(Format):
    """Four trits a byte, the first in the low bits, stored plus 1."""

    codes, size = 4, 1

    def encode(self, codes: Codes) -> Stored:
        """Four fields a byte."""
        return packing.pack_fields(codes + np.int8(1), 2)

    def decode(self, unit: list[Expr]) -> list[Expr]:
        """Shifts and masks."""
        (byte,) = unit
        return [((byte >> 2 * j) & 3) - 1 for j in range(4)]


@dataclass(frozen=True)
class Base3Trits(Format):
    """Five trits a byte, the value stretched over 256, so that decoding only multiplies."""

    codes, size = 5, 1

    def encode(self, codes: Codes) -> Stored:
        """Five digits a byte."""
        return packing.pack_base3(codes)

    def decode(self, unit: list[Expr]) -> list[Expr]:
        """The next digit is the carry of three times the rest."""
        (rest,) = unit
        trits = []
        for _ in range(5):
            tripled = rest * 3
            trits.append((tripled >> 8) - 1)
            rest = tripled & 255
        return trits


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
    def codes(self) -> int:
        """Those of a unit of one plane."""
        return self.plane.codes

    @property
    def size(self) -> int:
        """A unit of each plane."""
        return self.plane.size * self.planes

    def encode(self, codes: Codes) -> Stored:
        """The trits of each plane, then the units of all planes in turn."""
        octets = self.plane.encode(split_trits(codes, self.planes))
        units = octets.reshape(*octets.shape[:-1], -1, self.plane.size)
        return np.moveaxis(units, 0, -2).reshape(*codes.shape[:-1], -1)

    def decode(self, unit: list[Expr]) -> list[Expr]:
        """The digits of base three put together."""
        size = self.plane.size
        codes, *others = (
            self.plane.decode(unit[start : start + size]) for start in range(0, self.size, size)
        )
        for trits in others:
            codes = [code * 3 + trit for code, trit in zip(codes, trits, strict=True)]
        return codes


def _padded(codes: Codes, multiple: int) -> Codes:
    missing = -codes.shape[-1] % multiple
    return np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
