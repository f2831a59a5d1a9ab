"""Calibration samples in any usual form, checked against the model and held as numpy arrays."""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes.errors import CalibrationError
from .bounds import dim_size, dimension_bounds, index_bounds
from .sample_check import Sample, SampleChecker


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs for one model; each sample is one call of it."""

    items: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.items)

    @cached_property
    def sha256(self) -> str:
        """The hash of all names, dtypes, shapes and bytes, in order."""
        digest = hashlib.sha256()
        for sample in self.items:
            digest.update(f"sample {len(sample)}\n".encode())
            for name, array in sorted(sample.items()):
                digest.update(f"{name} {array.dtype.str} {array.dtype} {array.shape}\n".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def tokens(self) -> int:
        """Token ids in all samples; rows of the batch for a model without integer inputs."""
        return _tokens_of(self.items)

    def held_out(self, least: int, tokens: int) -> tuple[Samples, Samples]:
        """Samples to calibrate on, and the last ones: so many, or more until they have `tokens`.

        At most a quarter is held out. Where `least` is more than that, both share these.
        """
        count = most = len(self) // 4
        while count > least and _tokens_of(self.items[-(count - 1) :]) >= tokens:
            count -= 1
        if most < least:
            return self, Samples(self.items[-least:])
        return Samples(self.items[:-count]), Samples(self.items[-count:])


def _tokens_of(samples: Iterable[Sample]) -> int:
    return sum(map(_tokens, samples))


def _tokens(sample: Sample) -> int:
    ids = [array.size for array in sample.values() if array.dtype.kind in "iu"]
    if ids:
        return max(ids)
    first = next(iter(sample.values()))
    return first.shape[0] if first.ndim else 1


def read_samples(data: Any, model: ir.Model) -> Samples:
    """Takes in calibration data once and checks it against the inputs of the model.

    Args:
        data: an iterable of samples, each a dict by input name, a tuple in the order of the
            inputs, or for one input the array alone; arrays are numpy's or torch's, and nested
            lists and dicts of them follow the naming of `torch.export` (`past_0`, `past_key`). Or
            the path of an `.npz` whose keys are input names (one sample), or `0/name`, `1/name`
            and so on (many, each of its own shape).
        model: whose graph inputs say which names, types and shapes are wanted.

    Raises:
        CalibrationError: no samples, or one that does not fit; it names the sample and the input.
    """
    if isinstance(data, (str, Path)):
        names = {str(value.name) for value in model.graph.inputs}
        raw: Iterable[Any] = read_archive(Path(data), names)
    elif isinstance(data, Mapping):
        raw = [data]
    elif hasattr(data, "shape"):
        shapes = [value.shape for value in model.graph.inputs]
        one = len(shapes) == 1 and shapes[0] is not None and len(shapes[0]) == len(data.shape)
        raw = [data] if one else data
    elif isinstance(data, Iterable):
        raw = data
    else:
        raise CalibrationError(
            f"calibration data is a {type(data).__name__}; give an iterable of dicts, tuples or "
            "arrays, or the path of an .npz"
        )
    checker = SampleChecker(model)
    try:
        items = tuple(checker.sample(index, sample) for index, sample in enumerate(raw))
    except OSError as error:
        raise CalibrationError(f"calibration data cannot be read: {error}") from error
    if not items:
        raise CalibrationError("calibration data holds no samples; give at least one")
    return Samples(items)


def check_archive(data: Any) -> None:
    """Refuses a path to calibration data where no archive is; other data is for `read_samples`.

    Raises:
        CalibrationError: no such file, or no archive; names it.
    """
    if not isinstance(data, (str, Path)):
        return
    if not Path(data).is_file():
        raise CalibrationError(f"{data}: there is no such file")
    if not zipfile.is_zipfile(data):
        raise CalibrationError(f"{data}: not an .npz of plain arrays, or damaged")


def read_archive(path: Path, names: Collection[str] = ()) -> Sequence[dict[str, NDArray[Any]]]:
    """The samples of an `.npz`: one of plain keys, or many of keys `0/name`, `1/name` and so on.

    Args:
        path: of the archive.
        names: that are plain keys, whatever they look like.

    Raises:
        CalibrationError: no archive of plain arrays, or one that mixes the two forms; names it.
    """
    check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(f"{path}: not an .npz of plain arrays, or damaged") from error
    numbered: dict[int, dict[str, NDArray[Any]]] = {}
    plain: dict[str, NDArray[Any]] = {}
    for key, array in arrays.items():
        match = re.fullmatch(r"(\d+)/(.+)", key)
        if match is None or key in names:
            plain[key] = array
        else:
            numbered.setdefault(int(match[1]), {})[match[2]] = array
    if plain and numbered:
        raise CalibrationError(
            f"{path}: mixes keys of one sample ({next(iter(plain))!r}) and of many "
            f"({next(iter(numbered))}/...); use one of the two forms"
        )
    return [numbered[index] for index in sorted(numbered)] if numbered else [plain]


def typed(sample: Sample, model: ir.Model) -> Sample:
    """The sample with its floats in the types that the inputs of a converted `model` have.

    Raises:
        CalibrationError: a number beyond the range of the type; it names the input.
    """
    types = {str(value.name): value.dtype for value in model.graph.inputs}
    return {name: _rounded(name, array, types.get(name)) for name, array in sample.items()}


def _rounded(name: str, array: NDArray[Any], dtype: ir.DataType | None) -> NDArray[Any]:
    if dtype is None or not dtype.is_floating_point() or array.dtype == dtype.numpy():
        return array
    with np.errstate(over="ignore"):
        found = array.astype(dtype.numpy())
    lost = np.isfinite(array) & ~np.isfinite(found)
    if lost.any():
        raise CalibrationError(
            f"input {name!r} holds {array[lost].flat[0]:.6g}, beyond the range of "
            f"{found.dtype.name}; give smaller numbers, or choose another dtype"
        )
    return found


def synthetic_sample(model: ir.Model, *, seed: int = 0) -> Sample:
    """A random sample for a model that comes without data: small, and valid where that is known.

    Indices of a table are drawn within it; other integers and truth values, which are masks and
    positions more often than not, are ones; floats are standard normal. The first axis of the
    first input is 2 long, other symbols 8, 9 and so on within their recorded bounds, and the same
    symbol has the same length everywhere.
    """
    random = np.random.default_rng(seed)
    indices = index_bounds(model)
    sizes = _symbol_sizes(model)
    return {
        str(value.name): _random(value, indices.get(str(value.name)), sizes, random)
        for value in model.graph.inputs
    }


def shortened(sample: Sample, model: ir.Model, length: int) -> Sample:
    """The sample with every dynamic dimension cut to `length`, for checks that need not be long.

    A sample is left alone if a length of one of its inputs is an expression of others.
    """
    shapes = {str(value.name): value.shape or () for value in model.graph.inputs}
    symbols = {
        dim.value
        for shape in shapes.values()
        for dim in shape
        if not isinstance(dim, int) and dim.value is not None
    }
    if not all(symbol.isidentifier() for symbol in symbols):
        return sample
    cuts = {
        name: tuple(slice(None) if isinstance(dim, int) else slice(length) for dim in shape)
        for name, shape in shapes.items()
    }
    return {name: array[cuts[name]] for name, array in sample.items()}


def _symbol_sizes(model: ir.Model) -> dict[str, int]:
    bounds = dimension_bounds(model)
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            name = None if isinstance(dim, int) else dim.value
            if name is None or not name.isidentifier() or name in sizes:
                continue
            wanted = 2 if axis == 0 else 7 + max(1, len(sizes))
            low, high = bounds.get(name, (0, wanted))
            sizes[name] = min(max(low, wanted), high)
    return sizes


def _random(
    value: ir.Value,
    indices: tuple[int, int] | None,
    sizes: dict[str, int],
    random: np.random.Generator,
) -> NDArray[Any]:
    if value.shape is None or value.dtype is None:
        raise CalibrationError(
            f"input {value.name!r} states no type and shape, so no sample can be made up for it; "
            "give calibration data"
        )
    shape = tuple(_size(dim, axis, sizes) for axis, dim in enumerate(value.shape))
    if indices is not None:
        return random.integers(*indices, size=shape, endpoint=True).astype(value.dtype.numpy())
    if value.dtype.is_floating_point():
        return random.standard_normal(shape).astype(value.dtype.numpy())
    if value.dtype.is_integer() or value.dtype == ir.DataType.BOOL:
        return np.ones(shape, value.dtype.numpy())
    raise CalibrationError(
        f"input {value.name!r} is {value.dtype.name}, of which no sample can be made up; "
        "give calibration data"
    )


def _size(dim: Any, axis: int, sizes: dict[str, int]) -> int:
    """The length of a dimension; expressions of symbols, as `past + seq`, are computed."""
    known = dim_size(dim, sizes)
    return known if known is not None else 2 if axis == 0 else 8
