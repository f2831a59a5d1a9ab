"""What a call of attention is given, and where each row of a head lies in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from ..attention import Attention, Layout
from ..tir import Argument, Buffer, Expr, index, load
from .attention_tiling import BLOCKS
from .dtypes import Activation
from .fragments import TILE
from .words import UNIT, address, held


def workspace(spec: Attention) -> tuple[int, int, int]:
    """The shape of what splits of the keys leave to be added up, float32.

    A split leaves 16 rows: the sums of each, its maximum and its total, in whole units. Its length
    does not depend on those of the call, so that a captured graph has it in one place.
    """
    return (BLOCKS, TILE, spec.value_size + UNIT)


class Lengths:
    """The symbols of a call."""

    def __init__(self) -> None:
        names = ("batch", "queries", "keys")
        self.batch, self.queries, self.keys = (tirx.Var(name, "int64") for name in names)


def arguments(spec: Attention, activation: Activation, lengths: Lengths) -> list[Argument]:
    """`(query, key, value, mask if there is one, y, workspace)`, all but the masks of one type."""
    batch, queries, keys = lengths.batch, lengths.queries, lengths.keys
    dtype, heads = activation.dtype, spec.heads * spec.group

    def shape(layout: Layout, heads: int, length: Expr, size: int) -> tuple[Any, ...]:
        if layout == "heads":
            return (batch, heads, length, size)
        return (batch, length, heads, size)

    found = [
        Argument("query", shape(spec.query, heads, queries, spec.size), dtype),
        Argument("key", shape(spec.key, spec.heads, keys, spec.size), dtype),
        Argument("value", shape(spec.value, spec.heads, keys, spec.value_size), dtype),
    ]
    if spec.mask is not None:
        full = (batch, heads, queries, keys)
        there = tuple(dim if has else 1 for dim, has in zip(full, spec.mask, strict=True))
        found.append(Argument("mask", there, spec.mask_dtype))
    return [
        *found,
        Argument("y", (batch, queries, heads, spec.value_size), dtype),
        Argument("workspace", workspace(spec), "float32"),
    ]


class Given:
    """Places in the buffers of a call.

    Rows of a head of keys are its queries in order, each for all heads that share it: what a row
    sees of causal keys grows with its number.
    """

    def __init__(
        self, spec: Attention, activation: Activation, lengths: Lengths, buffers: Sequence[Buffer]
    ) -> None:
        self.spec, self.activation = spec, activation
        self.query, self.key, self.value, *mask, self.y, self.workspace = buffers
        self.mask = mask[0] if mask else None
        self.batch, self.queries, self.keys = lengths.batch, lengths.queries, lengths.keys
        self.rows = self.queries * spec.group

    def of_head(self, number: Expr) -> Head:
        """Those of a batch and a head of keys, numbered head by head."""
        return Head(self, held(number // self.spec.heads), held(number % self.spec.heads))


class Head:
    """Places in the buffers of a call, of one head of keys and the queries that share it."""

    def __init__(self, given: Given, batch: Expr, head: Expr) -> None:
        self.given, self.spec = given, given.spec
        self._batch, self._head = batch, head

    def position(self, row: Expr) -> Expr:
        """Of a row's query."""
        return row // self.spec.group

    def query_at(self, row: Expr, column: Expr) -> Expr:
        """Where a row of the queries lies, from a column on."""
        return self._at(self.given.query, self.spec.query, *self._of_row(row), column)

    def key_at(self, key: Expr, column: Expr) -> Expr:
        """Where a key lies, from a column on."""
        return self._at(self.given.key, self.spec.key, self._head, key, column)

    def value_at(self, key: Expr, column: Expr) -> Expr:
        """Where the value of a key lies, from a column on."""
        return self._at(self.given.value, self.spec.value, self._head, key, column)

    def result(self, row: Expr, column: Expr) -> tuple[Expr, ...]:
        """The indices of a row of y."""
        head, position = self._of_row(row)
        return self._batch, position, head, column

    def mask_of(self, row: Expr, key: Expr) -> Expr:
        """The mask of a row that is there for a key that is there."""
        assert self.spec.mask is not None
        head, position = self._of_row(row)
        axes = (self._batch, head, position, key)
        at = [axis if has else index(0) for axis, has in zip(axes, self.spec.mask, strict=True)]
        return load(self.given.mask, *at)

    def _of_row(self, row: Expr) -> tuple[Expr, Expr]:
        """Its head and its position."""
        group = self.spec.group
        return self._head * group + row % group, row // group

    def _at(self, buffer: Buffer, layout: Layout, head: Expr, position: Expr, column: Expr) -> Expr:
        if layout == "heads":
            return address(buffer, self._batch, head, position, column)
        return address(buffer, self._batch, position, head, column)
