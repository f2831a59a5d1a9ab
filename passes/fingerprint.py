"""What results follow from, as text: hashes of arrays and of the code, versions of packages."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from .constants import read_tensor
from .plan import versions


def array_sha256(*arrays: NDArray[Any]) -> str:
    """The hash of the types, shapes and bytes of arrays, in C order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def model_sha256(model: ir.Model) -> str:
    """The hash of the graph, and of the names, types, shapes and bytes of its weights.

    Where weights lie and what the exporter noted beside the nodes is no part of it.
    """
    digest = hashlib.sha256()
    graph = model.clone()
    ClearMetadataAndDocStringPass()(graph)
    for name, value in sorted(graph.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype.name} {tensor.shape}\n".encode())
            digest.update(_tensor_sha256(tensor).encode())
    graph.graph.initializers.clear()
    digest.update(ir.to_proto(graph).SerializeToString(deterministic=True))
    return digest.hexdigest()


def _tensor_sha256(tensor: ir.TensorProtocol) -> str:
    if tensor.dtype == ir.DataType.STRING:
        return hashlib.sha256(repr(tensor.numpy().tolist()).encode()).hexdigest()
    return array_sha256(read_tensor(tensor))


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
