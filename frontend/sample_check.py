"""Does a sample fit the inputs of a model? Each refusal names the sample and the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes.errors import CalibrationError
from .bounds import dimension_bounds, index_bounds

Sample = dict[str, NDArray[Any]]


class SampleChecker:
    """Brings a sample into the form that the inputs of a model want, or says what is wrong."""

    def __init__(self, model: ir.Model) -> None:
        self._inputs = {str(value.name): value for value in model.graph.inputs}
        self._lengths = dimension_bounds(model)
        self._indices = index_bounds(model)

    def sample(self, index: int, sample: Any) -> Sample:
        """The arrays by name, of the types that the model wants; the data is copied."""
        where = f"calibration sample {index}"
        given = self._by_name(sample, where)
        unknown, missing = given.keys() - self._inputs.keys(), self._inputs.keys() - given.keys()
        if unknown or missing:
            what = f"lacks {min(missing)!r}" if missing else f"has an unknown {min(unknown)!r}"
            raise CalibrationError(f"{where} {what}; the inputs are {', '.join(self._inputs)}")
        sizes: dict[str, int] = {}
        return {
            name: self._array(value, given[name], f"{where}, input {name!r}", sizes)
            for name, value in self._inputs.items()
        }

    def _by_name(self, sample: Any, where: str) -> dict[str, Any]:
        if isinstance(sample, Mapping):
            return dict(leaf for key, item in sample.items() for leaf in _leaves(str(key), item))
        leaves = [item for _, item in _leaves("", sample)]
        if len(leaves) != len(self._inputs):
            raise CalibrationError(
                f"{where} has {len(leaves)} arrays and the model {len(self._inputs)} inputs: "
                f"{', '.join(self._inputs)}"
            )
        return dict(zip(self._inputs, leaves, strict=True))

    def _array(self, value: ir.Value, item: Any, where: str, sizes: dict[str, int]) -> NDArray[Any]:
        array = _cast(_numpy(item, where), value.dtype, where)
        if value.shape is not None:
            self._check_shape(array.shape, value.shape, where, sizes)
        low, high = self._indices.get(str(value.name), (None, None))
        if low is not None and high is not None and array.size:
            worst = array.min() if array.min() < low else array.max()
            if not low <= worst <= high:
                raise CalibrationError(f"{where} holds {worst}; indices go from {low} to {high}")
        return array

    def _check_shape(
        self, got: tuple[int, ...], wanted: ir.Shape, where: str, sizes: dict[str, int]
    ) -> None:
        shown = f"has shape {list(got)}; the model wants [{', '.join(map(_dim_text, wanted))}]"
        if len(got) != len(wanted):
            raise CalibrationError(f"{where} {shown}")
        for size, dim in zip(got, wanted, strict=True):
            if isinstance(dim, int):
                if size != dim:
                    raise CalibrationError(f"{where} {shown}")
            elif dim.value is not None:
                if sizes.setdefault(dim.value, size) != size:
                    raise CalibrationError(
                        f"{where} {shown}, and {dim.value} is {sizes[dim.value]} elsewhere"
                    )
                low, high = self._lengths.get(dim.value, (0, size))
                if not low <= size <= high:
                    raise CalibrationError(
                        f"{where} {shown}, and {dim.value} goes from {low} to {high}"
                    )


def _dim_text(dim: Any) -> str:
    return str(dim) if isinstance(dim, int) else str(dim.value or "?")


def _leaves(name: str, item: Any) -> Iterator[tuple[str, Any]]:
    """Nested containers as `torch.export` flattens and names them."""
    if isinstance(item, Mapping):
        parts: Iterable[tuple[Any, Any]] = item.items()
    elif isinstance(item, tuple) or (isinstance(item, list) and _holds_arrays(item)):
        parts = enumerate(item)
    else:
        yield name, item
        return
    for key, part in parts:
        yield from _leaves(f"{name}_{key}" if name else str(key), part)


def _holds_arrays(item: list[Any]) -> bool:
    """A list of arrays is a container; a list of numbers is itself an array."""
    return any(
        hasattr(part, "shape") or isinstance(part, (Mapping, tuple)) or _nested(part)
        for part in item
    )


def _nested(part: Any) -> bool:
    return isinstance(part, list) and _holds_arrays(part)


def _numpy(item: Any, where: str) -> NDArray[Any]:
    if hasattr(item, "detach"):  # a torch tensor, on any device and with or without gradient
        item = item.detach().cpu()
        item = item.float() if str(item.dtype) == "torch.bfloat16" else item
        item = item.numpy()
    elif hasattr(item, "__dlpack__") and not isinstance(item, (np.ndarray, np.generic)):
        item = np.from_dlpack(item)
    try:
        array = np.asarray(item)
    except ValueError as error:
        raise CalibrationError(f"{where} is ragged; give each sample by itself") from error
    if array.dtype == object or (array.dtype.kind in "USV" and array.dtype.name != "bfloat16"):
        raise CalibrationError(f"{where} holds {array.dtype}, which is no number")
    return np.array(array, order="C")


def _cast(array: NDArray[Any], dtype: ir.DataType | None, where: str) -> NDArray[Any]:
    if dtype is None or array.dtype == dtype.numpy():
        return array
    target = dtype.numpy()
    same_kind = (array.dtype.kind == "f" and dtype.is_floating_point()) or (
        array.dtype.kind in "iu" and dtype.is_integer()
    )
    cast = array.astype(target) if same_kind or np.can_cast(array.dtype, target) else None
    if cast is None or (array.dtype.kind in "iu" and not np.array_equal(cast, array)):
        raise CalibrationError(
            f"{where} is {array.dtype} and the model wants {dtype.numpy()}; convert it"
        )
    return cast
