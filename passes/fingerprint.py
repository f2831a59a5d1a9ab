"""What results follow from, as text: hashes of arrays and of the code, versions of packages."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plan import versions


def array_sha256(*arrays: NDArray[Any]) -> str:
    """The hash of the types, shapes and bytes of arrays, in C order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@functools.cache
def code_fingerprint() -> dict[str, str]:
    """The versions of the packages that decide results, and the hash of undense's own sources.

    With the sources, since a checkout that is worked on keeps its version between edits.
    """
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for folder in ("frontend", "passes"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return {**versions(), "sources": digest.hexdigest()}
