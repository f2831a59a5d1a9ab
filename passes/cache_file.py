"""One entry of the cache as a file: written whole or not at all, and checked when it is read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

PARTIAL = ".partial"
"""What the names of files end in that are still being written."""

Arrays = Mapping[str, NDArray[Any]]


class DamagedEntryError(Exception):
    """A file that is not what was once written under its name."""


def write_entry(path: Path, values: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes values and arrays to `path`, which appears when it is complete.

    Arrays are stored as bytes, with their types beside them: safetensors does not know all types
    that factors have in all of its versions.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    native = {name: _native(array) for name, array in arrays.items()}
    stored = {name: array.reshape(-1).view(np.uint8) for name, array in native.items()}
    types = [[name, array.dtype.name, list(array.shape)] for name, array in native.items()]
    document = json.dumps({"values": dict(values), "arrays": types})
    metadata = {"document": document, "sha256": _checksum(path.stem, document, stored)}
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(stored, partial, metadata)
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"{error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_entry(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The values and arrays of a file, arrays in the order in which they were given.

    Raises:
        DamagedEntryError: it was cut short or changed since, or is of another name.
        OSError: it is not there, or cannot be read.
    """
    if path.stat().st_size == 0:
        raise DamagedEntryError("it is empty")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        document = metadata["document"]
        read = json.loads(document)
        ordered = {name: stored[name] for name, _, _ in read["arrays"]}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedEntryError(f"it is no entry: {error}") from error
    if _checksum(path.stem, document, ordered) != metadata.get("sha256"):
        raise DamagedEntryError("its checksum does not hold")
    arrays = {
        name: ordered[name].view(_dtype(dtype)).reshape(shape)
        for name, dtype, shape in read["arrays"]
    }
    return read["values"], arrays


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order and the byte order of this machine; scalars stay scalars."""
    if array.dtype.hasobject or array.dtype.names is not None:
        raise TypeError(f"an array of {array.dtype} cannot be stored")
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _dtype(name: str) -> np.dtype[Any]:
    """The type of that name, of numpy or of ml_dtypes."""
    return np.dtype(getattr(ml_dtypes, name, name))


def _checksum(name: str, document: str, stored: Arrays) -> str:
    """Of the file's name too, so that a copy under another name does not pass."""
    digest = hashlib.sha256(f"{name}\n{document}\n".encode())
    for array in stored.values():
        digest.update(array.data)
    return digest.hexdigest()
