"""One entry of the cache as a file: written whole or not at all, and checked when it is read."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import mmap
import resource
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

PARTIAL = ".partial"
"""What the names of files end in that are still being written."""

_OPEN_FILES = 2**16
"""That a process may have, if the system lets it."""

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

    Arrays are mapped: what nobody looks at takes no memory. They stay what they are when the file
    is replaced or removed, and changing them does not change it.

    Raises:
        DamagedEntryError: it was cut short or changed since, or is of another name.
        OSError: it is not there, or cannot be read.
    """
    if path.stat().st_size == 0:
        raise DamagedEntryError("it is empty")
    _allow_many_files()
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        header, data = _parts(mapping)
        metadata = header.pop("__metadata__")
        document = metadata["document"]
        read = json.loads(document)
        ordered = {name: data[_place(header.pop(name))] for name, _, _ in read["arrays"]}
        if header or len(data) != sum(array.size for array in ordered.values()):
            raise ValueError("it holds something else too")
        arrays = {
            name: np.require(ordered[name].view(_dtype(dtype)).reshape(shape), requirements="A")
            for name, dtype, shape in read["arrays"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedEntryError(f"it is no entry: {error}") from error
    if _checksum(path.stem, document, ordered) != metadata.get("sha256"):
        raise DamagedEntryError("its checksum does not hold")
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)  # the checksum has looked at all of it
    return read["values"], arrays


@functools.cache
def _allow_many_files() -> None:
    """A mapping keeps its file open, and a plan holds more of them than the usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _parts(mapping: mmap.mmap) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The header of a safetensors file, and the bytes that its offsets count in."""
    size = int.from_bytes(mapping[:8], "little")
    header = json.loads(mapping[8 : 8 + size])
    return header, np.frombuffer(mapping, np.uint8, offset=8 + size)


def _place(tensor: dict[str, Any]) -> slice:
    start, end = tensor["data_offsets"]
    if tensor != {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}:
        raise ValueError("its header is another")
    return slice(start, end)


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
