"""`Windows`: which inputs each output of a convolution over two axes reads."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from .tir import Argument, Expr, index

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """Entry k of the window of output i is input `i · stride + k · dilation − before`.

    Attributes:
        kernel: entries of a window along each axis.
        strides: from window to window.
        dilations: from entry to entry.
        before: zeros in front of each axis.
        after: zeros behind it.
        image: length of each axis of the input; None where it is known at run time only.
    """

    kernel: Pair
    strides: Pair
    dilations: Pair
    before: Pair
    after: Pair
    image: tuple[int | None, int | None]

    @property
    def size(self) -> int:
        """Entries of a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pointwise(self) -> bool:
        """Whether each output reads the input at its own place, and no other."""
        steps, added = (*self.kernel, *self.strides), (*self.before, *self.after)
        return all(step == 1 for step in steps) and not any(added)

    def lengths(self) -> tuple[Expr, Expr]:
        """Of the input's axes, with symbols of a function's own where they are not known."""
        high, wide = self.image
        return (
            tirx.Var("height", "int64") if high is None else index(high),
            tirx.Var("width", "int64") if wide is None else index(wide),
        )

    def outputs(self, axis: int, length: Expr) -> Expr:
        """Windows along an axis of that length."""
        padded = length + (self.before[axis] + self.after[axis])
        return count_windows(padded, self.kernel[axis], self.strides[axis], self.dilations[axis])

    def place(self, axis: int, output: Expr, entry: Expr | int) -> Expr:
        """The input of an entry of an output's window; it may lie outside."""
        start = output * self.strides[axis] - self.before[axis]
        return start + entry * self.dilations[axis]


def count_windows(length: Expr, width: int, stride: int, dilation: int) -> Expr:
    """Windows along a padded axis."""
    reach = (width - 1) * dilation + 1
    return tirx.floordiv(length - reach, index(stride)) + 1


def images(batch: Expr, lengths: tuple[Expr, Expr], channels: int) -> Argument:
    """x, `[batch, height, width, channels]`."""
    return Argument("x", (batch, *lengths, channels), "float32")


def inside(place: Expr, length: Expr) -> Expr:
    """Whether a place is one of the axis."""
    return tirx.all(place >= 0, place < length)
