"""Weights as the kernels read them: dense values, or codes with scales, in order of fragments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from ..tir import Argument, Buffer, Expr, index, load
from .dtypes import Activation
from .fragments import CHUNK, TILE, TILES, chunks, fragments, padded, row_tiles
from .words import WARP, address, call, clear, held

BITS = (2, 3, 4, 5, 8)
"""Of a stored code; odd ones keep the highest bit apart."""

Fragment = tuple[Buffer, int]
"""Registers, and where a lane's fragment begins in them."""


class Weights(ABC):
    """`[blocks, width, depth]`, of which a lane holds `words` words in each chunk."""

    activation: Activation

    @property
    @abstractmethod
    def storage(self) -> str:
        """What a kernel's speed depends on, in the kind of its tuning records."""

    @property
    @abstractmethod
    def planes(self) -> int:
        """Matrices that are added up."""

    @property
    @abstractmethod
    def sections(self) -> tuple[int, ...]:
        """Words that a lane loads at once; a section of all lanes lies in one piece."""

    @property
    @abstractmethod
    def scaled(self) -> bool:
        """Whether values are codes to be multiplied by scales."""

    @property
    def words(self) -> int:
        """Words of a lane in a chunk of one plane."""
        return sum(self.sections)

    @property
    def groups_of_chunk(self) -> int:
        """Groups that the inputs of a chunk belong to at most, wherever the groups begin."""
        return 0

    @abstractmethod
    def arguments(self, blocks: int, width: int, depth: int) -> tuple[Argument, ...]:
        """The stored buffers, the words first."""

    @abstractmethod
    def word(
        self, buffer: Buffer, plane: int, block: Expr, tile: Expr, chunk: Expr, number: Expr
    ) -> Expr:
        """The address of one of those words, a multiple of four."""

    @abstractmethod
    def fragment(self, words: Buffer, first: int, tile: int, values: Buffer) -> Fragment:
        """A lane's fragment of a tile, which codes are decoded into `values` for.

        Args:
            words: registers of a chunk.
            first: where the chunk's words begin in them.
            tile: of the chunk.
            values: registers for a fragment.
        """

    def read(
        self,
        words: Buffer,
        first: int,
        shared: Buffer,
        start: Expr,
        lane: Expr,
        tile: int | None = None,
    ) -> None:
        """Loads a lane's words of a chunk and plane, or of one of its tiles, from shared memory."""
        done = 0
        for width in self.sections:
            if tile is None or self.needs(done, tile):
                at = address(shared, start + done * WARP + lane * width)
                call(f"undense_load_{4 * width}", address(words, first + done), at)
            done += width

    def needs(self, first: int, tile: int) -> bool:
        """Whether the section that begins at word `first` has some of a tile."""
        return True


@dataclass(frozen=True)
class Dense(Weights):
    """Values of the type of x."""

    activation: Activation

    @property
    def storage(self) -> str:
        """Its only form."""
        return "dense"

    @property
    def planes(self) -> int:
        """One."""
        return 1

    @property
    def sections(self) -> tuple[int, ...]:
        """16 bytes at a time."""
        return (4,) * (TILES * self.activation.words // 4)

    @property
    def scaled(self) -> bool:
        """No."""
        return False

    def pack(self, weight: NDArray[np.generic]) -> NDArray[np.generic]:
        """`[blocks, m, n]`, rounded to the type, as the kernels read it."""
        found = fragments(weight.astype(self.activation.dtype))
        *lead, _, _ = found.shape
        if self.activation.bytes == 4:
            found = np.moveaxis(found.reshape(*lead, WARP, 2, 4), -2, -3)
        return np.ascontiguousarray(found).reshape(*lead[:-1], -1)

    def arguments(self, blocks: int, width: int, depth: int) -> tuple[Argument, ...]:
        """One buffer."""
        shape = (blocks, row_tiles(width), chunks(depth), TILE * CHUNK)
        return (Argument("weight", shape, self.activation.dtype),)

    def word(
        self, buffer: Buffer, plane: int, block: Expr, tile: Expr, chunk: Expr, number: Expr
    ) -> Expr:
        """Words are one value or two."""
        return address(buffer, block, tile, chunk, number * (4 // self.activation.bytes))

    def needs(self, first: int, tile: int) -> bool:
        """A section is a tile, or half of one."""
        return first // self.activation.words == tile

    def fragment(self, words: Buffer, first: int, tile: int, values: Buffer) -> Fragment:
        """The words themselves."""
        return words, first + tile * self.activation.words


@dataclass(frozen=True)
class Coded(Weights):
    """`Σ_p scales[p, group] · (stored[p] - offset)`, all times the output's `unit`.

    Scales are float32 relative to the power of two `unit` of their output, so that float16 holds
    them too: to all of its digits down to 2⁻¹⁴ of the largest of the same output.

    Attributes:
        activation: the type of x.
        bits: of a stored code, one of `BITS`.
        offset: what is added to a code before it is stored.
        group: inputs that share a scale, a multiple of 16.
        count: planes with scales of their own.
    """

    activation: Activation
    bits: int
    offset: int
    group: int
    count: int = 1

    @property
    def storage(self) -> str:
        """Bits, inputs of a scale and planes; the offset is an operand like any other."""
        planes = f" planes{self.count}" if self.count > 1 else ""
        return f"codes{self.bits} group{self.group}{planes}"

    @property
    def planes(self) -> int:
        """Those with scales of their own."""
        return self.count

    @property
    def sections(self) -> tuple[int, ...]:
        """The low bits, then the highest one where they are odd."""
        return {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 8: (4, 4)}[self.bits]

    @property
    def scaled(self) -> bool:
        """Yes."""
        return True

    @property
    def groups_of_chunk(self) -> int:
        """One, unless groups end within chunks."""
        firsts = range(0, CHUNK * self.group, CHUNK)
        last = CHUNK - 1
        return max((k + last) // self.group - k // self.group + 1 for k in firsts)

    def group_within(self, chunk: Expr, column: Expr) -> Expr:
        """Which of a chunk's groups the inputs of the lanes of a column belong to."""
        if self.group % CHUNK == 0:
            return index(0)
        if CHUNK % self.group == 0:
            return column * 16 // self.group
        first = chunk * CHUNK
        return held((first + column * 16) // self.group - first // self.group)

    def pack(
        self, codes: NDArray[np.int8], scales: NDArray[np.float32]
    ) -> dict[str, NDArray[np.generic]]:
        """Codes `[planes, m, n]` and scales `[planes, m, groups]` as the kernels read them."""
        outputs = codes.shape[-2]
        filled = padded(codes.astype(np.int16)) + self.offset
        # [planes, tiles, chunks, tile, lane, value] -> a lane's values of a chunk side by side
        lanes = np.moveaxis(fragments(filled), -3, -2)[:, None]
        unit = _units(np.abs(scales).max(axis=(0, 2), initial=0.0))
        missing = (0, -outputs % TILE)
        relative = np.pad(scales / unit[:, None], [(0, 0), missing, (0, 0)])
        tiled = relative.reshape(len(codes), -1, TILE, scales.shape[-1])
        return {
            "codes": self._encode(lanes.astype(np.uint32)),
            "scales": np.ascontiguousarray(tiled.swapaxes(-1, -2)[:, None], np.float32),
            "unit": np.pad(unit, missing, constant_values=1).reshape(1, -1, TILE),
        }

    @property
    def fields(self) -> tuple[int, ...]:
        """Bits of a code that are stored together, the low ones first."""
        return (self.bits - 1, 1) if self.bits % 2 else (self.bits,)

    def _encode(self, lanes: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Stored codes `[..., 32 lanes, 4 tiles, 8]` to words `[..., words * 32]`."""
        # A pair of neighbouring inputs in the halves of a word: [..., lane, tile, pair]
        pairs = lanes[..., 0::2] | (lanes[..., 1::2] << np.uint32(16))
        words = np.zeros((*pairs.shape[:-2], self.words), np.uint32)
        first, low = 0, 0
        for bits in self.fields:
            mask = np.uint32((2**bits - 1) * 0x00010001)
            for tile in range(TILES):
                for pair in range(4):
                    word, shift = place(bits, tile, pair)
                    field = (pairs[..., tile, pair] >> np.uint32(low)) & mask
                    words[..., first + word] |= field << np.uint32(shift)
            first, low = first + bits, low + bits
        parts, start = [], 0
        for width in self.sections:
            part = words[..., start : start + width]
            parts.append(part.reshape(*part.shape[:-2], -1))
            start += width
        return np.ascontiguousarray(np.concatenate(parts, axis=-1)).view(np.int32)

    def arguments(self, blocks: int, width: int, depth: int) -> tuple[Argument, ...]:
        """Codes, scales and units."""
        tiles, groups = row_tiles(width), -(-depth // self.group)
        codes = (self.count, blocks, tiles, chunks(depth), self.words * WARP)
        return (
            Argument("codes", codes, "int32"),
            Argument("scales", (self.count, blocks, tiles, groups, TILE), "float32"),
            Argument("unit", (blocks, tiles, TILE), "float32"),
        )

    def word(
        self, buffer: Buffer, plane: int, block: Expr, tile: Expr, chunk: Expr, number: Expr
    ) -> Expr:
        """Of the int32."""
        return address(buffer, plane, block, tile, chunk, number)

    def fragment(self, words: Buffer, first: int, tile: int, values: Buffer) -> Fragment:
        """Codes without their offset, exactly."""
        name = f"undense_decode_{self.activation.short}"
        call(name, address(values, 0), address(words, first), self.bits, tile, self.offset)
        return values, 0

    def scale(
        self, scales: Buffer, plane: int, block: Expr, tile: Expr, position: Expr, first: Expr
    ) -> Expr:
        """The scale of an output of a tile, by its position, for the inputs from `first` on."""
        groups = int(scales.shape[3])
        group = first // self.group
        if groups * self.group % CHUNK:
            # The inputs that fill the last chunk belong to no group; their codes are zero.
            group = tirx.min(group, index(groups - 1))
        return load(scales, plane, block, tile, group, position)

    def scaled_fragment(
        self,
        words: Buffer,
        first: int,
        tile: int,
        values: Buffer,
        sums: Buffer,
        scales: Buffer,
    ) -> Fragment:
        """`Σ_p scale_p · code_p` in the type of x.

        Args:
            words: registers of a chunk, plane by plane.
            first: where the chunk's words begin in them.
            tile: of the chunk.
            values: registers for a fragment.
            sums: registers for another one.
            scales: registers of two scales a plane, of the outputs g and g + 8.
        """
        clear(sums, 0, self.activation.words)
        for plane in range(self.count):
            self.fragment(words, first + plane * self.words, tile, values)
            low, high = (load(scales, 2 * plane + side) for side in range(2))
            name = f"undense_scaled_{self.activation.short}"
            call(name, address(sums, 0), address(values, 0), low, high)
        return sums, 0


def _units(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """The greatest power of two that is not above each of these; 1 for zero."""
    _, exponents = np.frexp(largest)
    return np.where(largest > 0, np.ldexp(np.float32(1), exponents - 1), np.float32(1))


def place(bits: int, tile: Any, pair: Any) -> tuple[Any, Any]:
    """The word, of the words that hold `bits` bits of each code, and the lowest bit of a pair.

    It is what `undense_pair` reads; tile and pair may be expressions.
    """
    if bits == 1:
        return 0, tile * 4 + pair
    if bits == 2:
        return tile // 2, tile % 2 * 8 + pair * 2
    if bits == 4:
        return tile, pair * 4
    return tile * 2 + pair // 2, pair % 2 * 8
