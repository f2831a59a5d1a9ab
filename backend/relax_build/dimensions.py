"""`Dimensions`: symbolic sizes, what is known of them, and how shapes broadcast."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import Range
from tvm.sym import Analyzer

from .values import Dim, plain

Bounds = dict[str, tuple[int, int | None]]
"""Lowest and highest value of dimensions by name, or by an expression such as `past + seq`."""

_UNBOUNDED = 1 << 40
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: lambda x, y: tirx.floordiv(extent(x), extent(y)),
}


class Dimensions:
    """The symbolic dimensions of one model.

    Attributes:
        bounds: what the code relies on and does not check.
    """

    def __init__(self, names: Set[str], bounds: Mapping[str, tuple[int, int | None]]) -> None:
        """Takes the names that are dimensions by themselves, and bounds stated beforehand."""
        self.bounds: Bounds = dict(bounds)
        self._names = names
        self._variables: dict[str, Any] = {}
        self._analyzer = Analyzer()

    def dimension(self, text: str) -> Any:
        """The variable of a name, or the expression of names that a text such as `a + b` is."""
        tree = _parsed(text)
        if isinstance(tree, ast.BinOp) and _symbols(tree) <= self._names:
            return self.simplify(self._evaluate(tree))
        return self._variable(text)

    def _variable(self, name: str) -> Any:
        if name not in self._variables:
            variable = tirx.Var(name, "int64")
            lower, upper = self.bounds.get(name, (0, None))
            length = (_UNBOUNDED if upper is None else upper + 1) - lower
            self._analyzer.bind(variable, Range.from_min_extent(lower, length))
            self._variables[name] = variable
        return self._variables[name]

    def _evaluate(self, tree: ast.expr) -> Dim:
        if isinstance(tree, ast.BinOp):
            sides = self._evaluate(tree.left), self._evaluate(tree.right)
            return _OPERATORS[type(tree.op)](*sides)
        return self._variable(tree.id) if isinstance(tree, ast.Name) else ast.literal_eval(tree)

    def bound(self, expression: Dim, *, at_least: int = 0, at_most: int | None = None) -> None:
        """Records that a symbolic expression must stay within a range at run time."""
        if isinstance(expression, int):
            return
        name = str(expression)
        lower, upper = self.bounds.get(name, (0, None))
        highest = [limit for limit in (upper, at_most) if limit is not None]
        self.bounds[name] = (max(lower, at_least), min(highest, default=None))

    def simplify(self, dim: Dim) -> Dim:
        """An int, or the simplest form of a symbolic dimension."""
        return plain(dim if isinstance(dim, int) else self._analyzer.simplify(dim))

    def same(self, first: Dim, second: Dim) -> bool:
        """Whether two dimensions are equal for all values of the symbols."""
        first, second = plain(first), plain(second)
        if isinstance(first, int) and isinstance(second, int):
            return first == second
        return bool(self._analyzer.can_prove_equal(first, second))

    def proves(self, condition: Any) -> bool:
        """Whether a condition on dimensions holds for all values of the symbols."""
        if isinstance(condition, bool | np.bool_):
            return bool(condition)
        return bool(self._analyzer.can_prove(condition))

    def require_equal(self, first: Dim, second: Dim) -> None:
        """Refuses two fixed dimensions that differ; symbolic ones are taken to agree.

        Raises:
            ValueError: they differ.
        """
        first, second = plain(first), plain(second)
        if isinstance(first, int) and isinstance(second, int) and first != second:
            raise ValueError(f"dimensions {first} and {second} do not agree")

    def broadcast(self, *shapes: Sequence[Dim]) -> tuple[Dim, ...]:
        """The ONNX broadcast of shapes; unequal symbolic dimensions are decided at run time.

        Raises:
            ValueError: fixed dimensions that do not broadcast.
        """
        rank = max(len(shape) for shape in shapes)
        padded = [[1] * (rank - len(shape)) + [plain(dim) for dim in shape] for shape in shapes]
        columns = zip(*padded, strict=True)
        return tuple(functools.reduce(self._broadcast_dim, dims) for dims in columns)

    def _broadcast_dim(self, first: Dim, second: Dim) -> Dim:
        if is_number(first, 1):
            return second
        if is_number(second, 1) or self.same(first, second):
            return first
        if isinstance(first, int) and isinstance(second, int):
            raise ValueError(f"dimensions {first} and {second} do not broadcast")
        if isinstance(first, int):
            return first
        if isinstance(second, int):
            return second
        return self.simplify(tirx.Select(first == 1, second, first))

    def reading(
        self, shape: Sequence[Dim], broadcast: Sequence[Dim]
    ) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
        """How to read an operand of `shape` at an index of `broadcast`: given index and its dims.

        An axis of one entry is read at 0, an equal one at the index, and one where that is decided
        at run time by a comparison.
        """
        aligned = broadcast[len(broadcast) - len(shape) :]
        plans = [
            "zero" if is_number(dim, 1) else "same" if self.same(dim, other) else "either"
            for dim, other in zip(shape, aligned, strict=True)
        ]

        def read(index: Sequence[Any], dims: Sequence[Any]) -> list[Any]:
            return list(map(_read_at, plans, index[len(index) - len(plans) :], dims))

        return read


def _read_at(plan: str, index: Any, dim: Any) -> Any:
    if plan == "zero":
        return extent(0)
    return index if plan == "same" else tirx.Select(dim == 1, extent(0), index)


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def _symbols(tree: ast.expr) -> set[str]:
    """The names in an expression; one that is no name where it holds anything else."""
    if isinstance(tree, ast.Name):
        return {tree.id}
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        return _symbols(tree.left) | _symbols(tree.right)
    return set() if isinstance(tree, ast.Constant) and type(tree.value) is int else {""}


def is_number(dim: Dim, number: int) -> bool:
    """Whether a dimension is known to be this number."""
    return isinstance(dim, int) and dim == number


def extent(dim: Dim) -> Any:
    """A dimension as an int64 expression."""
    return tirx.IntImm("int64", dim) if isinstance(dim, int) else dim


def size(shape: Sequence[Dim]) -> Dim:
    """The number of entries."""
    return functools.reduce(operator.mul, shape, 1)
