"""Named arrays in `.npz` files: the same arrays give the same bytes, and nothing is pickled.

The format has no name for bfloat16: such arrays are stored as float32, which loses nothing, and
`as_declared` brings them back to what a manifest says.
"""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..passes.errors import InputError, cause_of
from .manifest import TensorInfo

_BFLOAT16 = "bfloat16"
_HALVES = ("float16", _BFLOAT16)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The type of a name out of `manifest.DTYPES`; bfloat16 is that of `ml_dtypes`."""
    if name == _BFLOAT16:
        import ml_dtypes  # noqa: F401  # names the type to numpy

    return np.dtype(name)


def as_declared(
    arrays: Mapping[str, NDArray[Any]], infos: Iterable[TensorInfo]
) -> dict[str, NDArray[Any]]:
    """The arrays of a file, with float32 rounded where an input is declared as a half type."""
    found = dict(arrays)
    for info in infos:
        array = found.get(info.name)
        if array is not None and info.dtype in _HALVES and array.dtype == np.float32:
            with np.errstate(over="ignore"):
                found[info.name] = array.astype(numpy_dtype(info.dtype))
    return found


def write_npz(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes an uncompressed `.npz`, whole or not at all, with its members sorted by name.

    Raises:
        InputError: the path cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name in sorted(arrays):
                # savez takes names as keywords, of which `file` is its own.
                array = np.asarray(arrays[name])
                if array.dtype.name == _BFLOAT16:
                    array = array.astype(np.float32)
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_npz(path: str | Path) -> dict[str, NDArray[Any]]:
    """All arrays of an `.npz` by name.

    Raises:
        InputError: the file is missing, damaged, no such archive, or holds pickled objects.
    """
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise InputError(f"{path} holds an array without a name; use numpy.savez")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as .npz: {cause_of(error)}") from error
