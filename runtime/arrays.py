"""Named arrays in `.npz` files: the same arrays give the same bytes, and nothing is pickled."""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..passes.errors import InputError, cause_of


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
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(arrays[name]), allow_pickle=False)
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
