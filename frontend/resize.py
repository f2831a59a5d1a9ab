"""Samples of as many rows as one asks for, made of one that is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .bounds import dim_size, dimension_bounds
from .sample_check import Sample

FIXED_SHAPES = (
    "the shapes of the model are fixed: times are of one call, which stands as batch 1 whatever "
    "was asked for"
)


def is_fixed(model: ir.Model) -> bool:
    """Whether every input has one shape, so that there is one size of call."""
    return not any(map(_is_dynamic, model.graph.inputs))


def resized(sample: Sample, model: ir.Model, rows: Iterable[int]) -> dict[int, Sample]:
    """The sample with its values repeated or cut, so that a call has so many rows, by their number.

    Rows are the product of the dynamic dimensions of the first input that has any: a line of 32
    tokens, or a batch of 32 images. The last of them takes what its bounds allow, the ones before
    it the rest; dimensions of other inputs, such as the length of a cache, stay as they are. Where
    nothing is dynamic the sample is left as it is, and where a dynamic dimension has no name there
    is none.

    Args:
        sample: of the model, with every input.
        model: whose inputs and recorded bounds are kept.
        rows: of a call. Those that the bounds do not allow are left out, and those that need
            a length of which the sample has nothing to repeat.
    """
    found = ((count, _resized(sample, model, count)) for count in rows)
    return {count: made for count, made in found if made is not None}


def _resized(sample: Sample, model: ir.Model, rows: int) -> Sample | None:
    found_sizes = sizes(sample, model)
    symbols = _first_symbols(model)
    if not symbols and not is_fixed(model):
        return None
    wanted = _lengths(symbols, dimension_bounds(model), rows) if symbols else {}
    if wanted is None:
        return None
    found_sizes.update(wanted)
    found = {}
    for value in model.graph.inputs:
        name = str(value.name)
        array = sample[name]
        for axis, dim in enumerate(value.shape or ()):
            length = dim_size(dim, found_sizes)
            if length is None or length == array.shape[axis]:
                continue
            if not array.shape[axis]:
                return None
            array = _repeated(array, axis, length)
        found[name] = array
    return found


def _repeated(array: NDArray[np.generic], axis: int, length: int) -> NDArray[np.generic]:
    return np.ascontiguousarray(np.take(array, np.arange(length), axis, mode="wrap"))


def _symbols(value: ir.Value) -> list[str]:
    """Names of the dynamic dimensions; expressions of others have none of their own."""
    dims = (dim for dim in value.shape or () if not isinstance(dim, int))
    return [dim.value for dim in dims if dim.value is not None and dim.value.isidentifier()]


def _is_dynamic(value: ir.Value) -> bool:
    return value.shape is None or not all(isinstance(dim, int) for dim in value.shape)


def _first_symbols(model: ir.Model) -> list[str]:
    return next((found for value in model.graph.inputs if (found := _symbols(value))), [])


def sizes(sample: Sample, model: ir.Model) -> dict[str, int]:
    """The lengths that dynamic dimensions have in a sample, by their names."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        for dim, length in zip(value.shape or (), sample[str(value.name)].shape, strict=True):
            if not isinstance(dim, int) and dim.value is not None:
                found[dim.value] = length
    return {name: length for name, length in found.items() if name.isidentifier()}


def _lengths(
    symbols: list[str], bounds: Mapping[str, tuple[int, int]], rows: int
) -> dict[str, int] | None:
    """Lengths within the bounds whose product is `rows`, the last as long as may be."""
    if not symbols:
        return {} if rows == 1 else None
    *others, symbol = symbols
    low, high = bounds.get(symbol, (1, rows))
    for length in range(min(rows, high), max(low, 1) - 1, -1):
        if rows % length == 0:
            found = _lengths(others, bounds, rows // length)
            if found is not None:
                return {symbol: length, **found}
    return None
