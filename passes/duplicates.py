"""`W` and a copy of `W` or `Wᵀ` -> one initializer: exporters copy weights that were tied."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .constants import FLOATS
from .sites import SMALLEST_WEIGHT

_SAMPLES = 16
"""Rows and columns of the grid of entries that two weights must share to be compared in full."""

_CHUNK = 1 << 20
"""Entries compared at a time."""

_Bits = NDArray[np.unsignedinteger]


class MergeDuplicateWeights(ir.passes.InPlacePass):
    """Joins matrices that are equal bit by bit, as they stand or transposed.

    The first one stays, or the one that a Gather reads: rows cannot be gathered through a
    Transpose without copying the table. Only matrices large enough to be a site are looked at.
    They are compared a block of rows at a time, and external data is mapped, never held.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        groups: dict[object, list[ir.Value]] = {}
        for value in model.graph.initializers.values():
            if _is_candidate(value):
                groups.setdefault(_shape_key(value), []).append(value)
        modified = False
        for group in groups.values():
            if len(group) > 1:
                modified |= _merge_group(model.graph, group)
        return ir.passes.PassResult(model, modified)


def _is_candidate(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.is_graph_output():
        return False
    return tensor.dtype in FLOATS and len(tensor.shape) == 2 and tensor.size >= SMALLEST_WEIGHT


def _shape_key(value: ir.Value) -> tuple[object, ...]:
    tensor = value.const_value
    return () if tensor is None else (tensor.dtype, *sorted(tensor.shape.numpy()))


def _merge_group(graph: ir.Graph, group: list[ir.Value]) -> bool:
    """Joins the equal ones among matrices of one type and, but for order, one shape."""
    kept: dict[bytes, list[ir.Value]] = {}
    modified = False
    for value in sorted(group, key=lambda value: not _is_gathered(value)):
        same = kept.setdefault(_fingerprint(value), [])
        for other in same:
            transposed = _equal(other, value)
            if transposed is not None:
                _join(graph, other, value, transposed=transposed)
                modified = True
                break
        else:
            same.append(value)
    return modified


def _is_gathered(value: ir.Value) -> bool:
    return any(node.op_type == "Gather" and index == 0 for node, index in value.uses())


def _fingerprint(value: ir.Value) -> bytes:
    """The same for W and Wᵀ."""
    bits = _bits(value)
    samples = min(_sample(side) for side in _tall(bits))
    del bits
    _release(value)
    return samples


def _tall(bits: _Bits) -> Iterator[_Bits]:
    rows, columns = bits.shape
    if rows >= columns:
        yield bits
    if columns >= rows:
        yield bits.T


def _sample(bits: _Bits) -> bytes:
    rows, columns = (max(1, size // _SAMPLES) for size in bits.shape)
    return bits[::rows, ::columns].tobytes()


def _equal(first: ir.Value, second: ir.Value) -> bool | None:
    """False if the two are the same bits, True if one is the transpose, None if neither."""
    a, b = _bits(first), _bits(second)
    result = None
    if a.shape == b.shape and _same(a, b):
        result = False
    elif a.shape == b.shape[::-1] and _same(a, b.T):
        result = True
    del a, b
    _release(first)
    _release(second)
    return result


def _same(a: _Bits, b: _Bits) -> bool:
    step = max(1, _CHUNK // a.shape[1])
    return all(
        np.array_equal(a[row : row + step], b[row : row + step])
        for row in range(0, a.shape[0], step)
    )


def _bits(value: ir.Value) -> _Bits:
    """The entries as integers of the same width, so that NaNs compare and zeros keep their sign."""
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name} holds no data")
    array = tensor.numpy()
    return array.view(f"u{array.itemsize}")


def _release(value: ir.Value) -> None:
    if isinstance(value.const_value, ir.ExternalTensor):
        value.const_value.release()


def _join(graph: ir.Graph, kept: ir.Value, copy: ir.Value, *, transposed: bool) -> None:
    """Lets every reader of `copy` read `kept`, and removes `copy`."""
    name = str(copy.name)
    replacement = kept
    if transposed:
        node = ir.node("Transpose", [kept], {"perm": [1, 0]})
        replacement = node.outputs[0]
        replacement.type, replacement.shape = copy.type, copy.shape
        graph.insert_before(graph[0], node)
    copy.replace_all_uses_with(replacement)
    del graph.initializers[name]
    if transposed:
        replacement.name = name
