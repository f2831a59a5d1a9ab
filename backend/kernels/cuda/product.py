"""`Product`: what one kernel computes, and what it does with x and y at their edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from ..finish import Finish
from ..mathematics import dtype_of
from ..targets import Workload
from ..tir import Argument, Buffer, Expr, index, load, only_if, store, vectorized
from .dtypes import Activation
from .fragments import CHUNK
from .weights import Weights
from .words import UNIT, address, call, clear, registers, unrolled


@dataclass(frozen=True)
class Scatter:
    """Outputs of a block-diagonal factor in the order in which the next one reads them.

    Output j of block b goes to `(j // rank) · stride + b · rank + j % rank`: Monarch's permutation.
    """

    rank: int
    stride: int


@dataclass(frozen=True)
class Product:
    """`y[:, b · width + j] = Σ_k x[:, b · stride + k] W[b, j, k]` for every block b.

    Attributes:
        activation: the type of x and y.
        weights: how W is stored.
        blocks: on the diagonal.
        width: outputs of a block.
        depth: inputs of a block.
        stride: inputs from one block to the next.
        scatter: where outputs go instead, if anywhere.
        columns: of y.
    """

    activation: Activation
    weights: Weights
    blocks: int
    width: int
    depth: int
    stride: int
    columns: int
    scatter: Scatter | None = None

    @classmethod
    def plain(cls, activation: Activation, weights: Weights, width: int, depth: int) -> Product:
        """`y = x Wᵀ`."""
        return cls(activation, weights, 1, width, depth, depth, width)

    @property
    def workload(self) -> Workload:
        """By which its tilings are measured and kept: the kind, outputs and inputs of a block."""
        parts = ["cuda", self.weights.storage, self.activation.dtype]
        if self.blocks > 1:
            parts.append(f"blocks{self.blocks}")
        if self.scatter is not None:
            parts.append("permuted")
        return " ".join(parts), self.width, self.depth

    @property
    def inputs(self) -> int:
        """Columns of x."""
        return self.blocks * self.stride

    @property
    def aligned(self) -> bool:
        """Whether x can be read 16 bytes at a time."""
        unit = self.activation.unit
        return self.depth % unit == 0 and self.stride % unit == 0

    @property
    def in_pairs(self) -> bool:
        """Whether x can be read two neighbours at a time."""
        return self.depth % 2 == 0 and self.stride % 2 == 0

    def arguments(self, rows: Expr, finish: Finish | None) -> list[Argument]:
        """The buffers `(x, *weights, *finish, y)`."""
        further = [] if finish is None else list(finish.arguments(rows))
        dtype = self.activation.dtype if finish is None else finish.dtype
        return [
            Argument("x", (rows, self.inputs), self.activation.dtype),
            *self.weights.arguments(self.blocks, self.width, self.depth),
            *further,
            Argument("y", (rows, self.columns), dtype),
        ]

    def parts(self, buffers: Sequence[Buffer]) -> tuple[Buffer, Sequence[Buffer], Sequence[Buffer]]:
        """x, the stored weights, and what a finish reads with y behind it."""
        count = len(self.weights.arguments(self.blocks, self.width, self.depth))
        return buffers[0], buffers[1 : 1 + count], buffers[1 + count :]

    def column(self, block: Expr, output: Expr) -> Expr:
        """Where an output of a block stands in y."""
        if self.scatter is None:
            return block * self.width + output
        rank, stride = self.scatter.rank, self.scatter.stride
        return tirx.floordiv(output, rank) * stride + block * rank + tirx.floormod(output, rank)

    def load_unit(
        self, words: Buffer, first: Expr | int, x: Buffer, row: Expr, block: Expr, k: Expr
    ) -> None:
        """Loads 16 bytes of a row that is there; zeros behind the last input."""
        if self.depth % CHUNK == 0 and self.aligned:
            at = address(x, row, block * self.stride + k)
            call("undense_load_16", address(words, first), at)
            return
        if self.aligned:
            name, place = "undense_load_16", address(words, first)
            with only_if(k < self.depth):
                call(name, place, address(x, row, block * self.stride + k))
            with only_if(k >= self.depth):
                clear(words, first, UNIT)
            return
        values = registers(self.activation.unit, self.activation.dtype)
        with unrolled(self.activation.unit) as i:
            inside = tirx.if_then_else(
                k + i < self.depth,
                load(x, row, block * self.stride + k + i),
                tirx.const(0.0, self.activation.dtype),
            )
            store(values, inside, i)
        call("undense_load_16", address(words, first), address(values, 0))


def finished(
    buffers: Sequence[Buffer], finish: Finish | None, dtype: str, value: Expr, row: Expr, at: Expr
) -> Expr:
    """What is stored for a sum: rounded to the type of a product, then finished."""
    result = value if dtype_of(value) == dtype else tirx.Cast(dtype, value)
    return result if finish is None else finish.apply(buffers, result, row, at)


def put(
    product: Product,
    finish: Finish | None,
    stored: Sequence[Buffer],
    row: Expr,
    block: Expr,
    output: Expr,
    count: int,
    value: Callable[[int], Expr],
) -> None:
    """Finishes and stores `count` neighbouring outputs of a row that is there.

    Outputs beyond the width are left out. They are stored at once where they lie side by side.
    """
    *further, y = stored
    dtype = product.activation.dtype

    def one(i: int) -> Expr:
        at = product.column(block, output + i)
        return finished(further, finish, dtype, value(i), row, at)

    together = (
        product.scatter is None
        and count > 1
        and product.width % count == 0
        and product.columns % count == 0
    )
    if together:
        with only_if(output < product.width):
            results = registers(count, str(y.dtype))
            for i in range(count):
                store(results, one(i), i)
            with vectorized(count) as lane:
                store(y, load(results, lane), row, product.column(block, output) + lane)
        return
    for i in range(count):
        with only_if(output + i < index(product.width)):
            store(y, one(i), row, product.column(block, output + i))
