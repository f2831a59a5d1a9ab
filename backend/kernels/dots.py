"""`sums + Σ w · x` over quads: four unsigned bytes of w by four signed bytes of x in each int32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from .tir import broadcast

Expr = Any
Instruction = Literal["vnni", "madd", "plain"]

_LARGEST = 127
"""Of the codes of x."""


@dataclass(frozen=True)
class Dots:
    """The instructions of a family of CPUs; all are exact.

    Attributes:
        instruction: `vnni` multiplies and adds a quad at once; `madd` multiplies pairs into int16,
            which it adds as long as nothing can overflow; `plain` leaves it to LLVM.
        lanes: int32 of a register.
    """

    instruction: Instruction = "plain"
    lanes: int = 16

    def add(self, sums: Expr, products: Sequence[tuple[Expr, Expr]], greatest: int) -> Expr:
        """`sums` and the products of quads `(w, x)`, where no byte of w is above `greatest`."""
        if self.instruction == "plain":
            return sum((_plain(w, x) for w, x in products), sums)
        if self.instruction == "vnni":
            for w, x in products:
                sums = self._call("vpdpbusd", "int32", self.lanes, sums, self._u8(w), self._s8(x))
            return sums
        together = 32767 // (2 * _LARGEST * greatest)
        if not together:
            for w, x in products:
                sums = sums + self._wide(w, x)
            return sums
        ones = broadcast(tirx.const(1, "int16"), 2 * self.lanes)
        for start in range(0, len(products), together):
            pairs = [
                self._call("pmaddubs", "int16", 2 * self.lanes, self._u8(w), self._s8(x))
                for w, x in products[start : start + together]
            ]
            both = sum(pairs[1:], pairs[0])
            sums = sums + self._call("pmaddw", "int32", self.lanes, both, ones)
        return sums

    def _wide(self, w: Expr, x: Expr) -> Expr:
        """Bytes of any size: even and odd ones in int16."""
        total = None
        for shift in (0, 8):
            halves = tirx.reinterpret(f"int16x{2 * self.lanes}", (w >> shift) & 0x00FF00FF)
            signed = tirx.reinterpret(f"int16x{2 * self.lanes}", x << (8 - shift)) >> tirx.const(
                8, f"int16x{2 * self.lanes}"
            )
            part = self._call("pmaddw", "int32", self.lanes, halves, signed)
            total = part if total is None else total + part
        return total

    def _u8(self, quads: Expr) -> Expr:
        return tirx.reinterpret(f"uint8x{4 * self.lanes}", quads)

    def _s8(self, quads: Expr) -> Expr:
        return tirx.reinterpret(f"int8x{4 * self.lanes}", quads)

    def _call(self, name: str, dtype: str, lanes: int, *arguments: Expr) -> Expr:
        intrinsic = _INTRINSICS[name, 32 * self.lanes]
        return tirx.call_llvm_pure_intrin(f"{dtype}x{lanes}", intrinsic, *arguments)


_INTRINSICS = {
    ("vpdpbusd", 512): "llvm.x86.avx512.vpdpbusd.512",
    ("vpdpbusd", 256): "llvm.x86.avx512.vpdpbusd.256",
    ("pmaddubs", 512): "llvm.x86.avx512.pmaddubs.w.512",
    ("pmaddubs", 256): "llvm.x86.avx2.pmadd.ub.sw",
    ("pmaddw", 512): "llvm.x86.avx512.pmaddw.d.512",
    ("pmaddw", 256): "llvm.x86.avx2.pmadd.wd",
}
"""By width of the registers in bits."""


def _plain(w: Expr, x: Expr) -> Expr:
    parts = [((w >> (8 * j)) & 255) * ((x << (24 - 8 * j)) >> 24) for j in range(4)]
    return sum(parts[1:], parts[0])
