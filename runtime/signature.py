"""Checks a call before the engine sees it: a wrong index or length there ends the process."""

from __future__ import annotations

import ast
import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..passes.errors import InputError
from .arrays import numpy_dtype
from .manifest import Dimension, TensorInfo
from .tensors import to_numpy

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


class Checkable(ABC):
    """Stands for an input whose memory is elsewhere, of which only type and shape are at hand.

    Attributes:
        dtype: of its entries.
        shape: as plain numbers.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @abstractmethod
    def extremes(self) -> tuple[int, int]:
        """The lowest and the highest of its entries, which are integers; there is at least one."""


def bind(
    inputs: Sequence[TensorInfo], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Positional and named arguments as one value for each input name, in the order of `inputs`.

    Raises:
        InputError: too many, unknown, duplicate or missing inputs.
    """
    names = [info.name for info in inputs]
    if len(args) > len(names):
        raise InputError(f"got {len(args)} inputs, the module takes {len(names)}: {_list(names)}")
    values = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in values:
            raise InputError(f"{name}: is given twice, by position and by name")
        if name not in names:
            raise InputError(f"{name}: is no input of the module; its inputs are {_list(names)}")
        values[name] = value
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"{_list(missing)}: not given; the module takes {_list(names)}")
    return {name: values[name] for name in names}


def check(
    inputs: Sequence[TensorInfo],
    dimension_bounds: Mapping[str, tuple[int, int]],
    values: Mapping[str, Any],
    *,
    check_device_indices: bool = True,
) -> dict[str, Any]:
    """The values as arrays that fit dtypes, ranks, lengths, symbols and index bounds.

    A `Checkable` is checked like an array, and returned as it is.

    Args:
        inputs: of the module.
        dimension_bounds: of its symbols.
        values: by name.
        check_device_indices: whether the entries of a `Checkable` are asked for.

    Raises:
        InputError: names the input, what was expected and what was given.
    """
    arrays = {
        info.name: value if isinstance(value, Checkable) else to_numpy(info.name, value, info.dtype)
        for info in inputs
        for value in (values[info.name],)
    }
    symbols: dict[str, tuple[int, str]] = {}
    for info in inputs:
        _check_type(info, arrays[info.name], symbols)
    lengths = {symbol: length for symbol, (length, _) in symbols.items()}
    for info in inputs:
        _check_expressions(info, arrays[info.name], lengths)
    for symbol, (low, high) in dimension_bounds.items():
        tree = _expression(symbol)
        length = lengths.get(symbol) if tree is None else _evaluate(tree, lengths)
        if length is not None and not low <= length <= high:
            where = f"{symbols[symbol][1]}: " if symbol in symbols else ""
            raise InputError(f"{where}{symbol} must lie in {low} to {high}, got {length}")
    for info in inputs:
        array = arrays[info.name]
        if check_device_indices or not isinstance(array, Checkable):
            _check_indices(info, array)
    return arrays


def _check_type(
    info: TensorInfo, array: NDArray[Any] | Checkable, symbols: dict[str, tuple[int, str]]
) -> None:
    if array.dtype != numpy_dtype(info.dtype):
        raise InputError(f"{info.name}: expected dtype {info.dtype}, got {array.dtype}")
    expected = f"expected shape {_shape(info.shape)}, got {_shape(array.shape)}"
    if len(array.shape) != len(info.shape):
        raise InputError(f"{info.name}: {expected}")
    for dim, length in zip(info.shape, array.shape, strict=True):
        if isinstance(dim, int) and dim != length:
            raise InputError(f"{info.name}: {expected}")
        if not isinstance(dim, str) or _expression(dim) is not None:
            continue
        known, where = symbols.setdefault(dim, (length, info.name))
        if known != length:
            raise InputError(f"{info.name}: {expected}; {dim} is {known} in {where}")


def _check_expressions(
    info: TensorInfo, array: NDArray[Any] | Checkable, lengths: Mapping[str, int]
) -> None:
    for dim, length in zip(info.shape, array.shape, strict=True):
        tree = _expression(dim)
        wanted = None if tree is None else _evaluate(tree, lengths)
        if wanted is not None and wanted != length:
            raise InputError(
                f"{info.name}: expected shape {_shape(info.shape)}, got {_shape(array.shape)}; "
                f"{dim} is {wanted} by the other inputs"
            )


def _check_indices(info: TensorInfo, array: NDArray[Any] | Checkable) -> None:
    if info.bounds is None or math.prod(array.shape) == 0:
        return
    low, high = info.bounds
    if isinstance(array, Checkable):
        smallest, largest = array.extremes()
    else:
        smallest, largest = int(array.min()), int(array.max())
    if smallest < low or largest > high:
        wrong = smallest if smallest < low else largest
        raise InputError(f"{info.name}: expected indices from {low} to {high}, got {wrong}")


@functools.cache
def _expression(dim: Dimension) -> ast.BinOp | None:
    """The arithmetic of a dimension such as "past + sequence"; None for a plain symbol."""
    if not isinstance(dim, str):
        return None
    try:
        tree = ast.parse(dim, mode="eval").body
    except SyntaxError:
        return None
    return tree if isinstance(tree, ast.BinOp) else None


def _evaluate(tree: ast.expr, lengths: Mapping[str, int]) -> int | None:
    """The value of an expression; None if a symbol is unknown or the form is another one."""
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.Name):
        return lengths.get(tree.id)
    if not isinstance(tree, ast.BinOp) or type(tree.op) not in _OPERATORS:
        return None
    left, right = _evaluate(tree.left, lengths), _evaluate(tree.right, lengths)
    if left is None or right is None or (isinstance(tree.op, ast.FloorDiv) and right == 0):
        return None
    return _OPERATORS[type(tree.op)](left, right)


def _shape(shape: Sequence[Dimension]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
