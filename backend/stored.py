"""`Stored`: the bytes of an artifact's weights, in all and by what they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ..passes.nodes import structured_nodes
from ..passes.sites import Site


@dataclass(frozen=True)
class Stored:
    """What an engine loads from disk.

    Attributes:
        weights: bytes of all weights, the padding and the copies that kernels want included.
        code: bytes of the files around them.
        by_name: bytes of the weights that stand for a site or a constant of the model.
    """

    weights: int
    code: int
    by_name: Mapping[str, int] = field(default_factory=dict)

    def report(self) -> dict[str, int]:
        """Its part of `bytes` in `report.json`."""
        return {"after": self.weights, "code": self.code}


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers: what the file of a dense model holds beside its graph."""
    return sum(_initializers(model).values())


def bytes_by_name(model: ir.Model) -> dict[str, int]:
    """Bytes of each initializer, and of the tensors of each site that was replaced."""
    sites = {node.site: node.tensors.values() for node in structured_nodes(model)}
    found: Counter[str] = Counter(_initializers(model))
    found.update({site: sum(t.nbytes for t in tensors) for site, tensors in sites.items()})
    return dict(found)


def _initializers(model: ir.Model) -> dict[str, int]:
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor.nbytes for name, tensor in tensors.items() if tensor is not None}


def site_bytes(site: Site, by_name: Mapping[str, int]) -> int:
    """Bytes that are stored for a site; those of the model's own tensor where no name tells."""
    if site.name in by_name:
        return by_name[site.name]
    # A dense weight goes by the name of what was folded into it: a Cast or Transpose.
    names = {site.value.name, *(value.name for node in site.path for value in node.outputs)}
    found = [by_name[str(name)] for name in names if name in by_name]
    tensor = site.value.const_value
    assert found or tensor is not None
    return sum(found) if found or tensor is None else tensor.nbytes


def larger_than_dense(
    sites: Iterable[Site], schemes: Mapping[str, str], before: Mapping[str, int], stored: Stored
) -> list[str]:
    """A sentence for each replaced site that takes more bytes than its dense weight would.

    Args:
        sites: of the model.
        schemes: of the sites, by their names.
        before: `bytes_by_name` of the model as it was, in the type that it computes in.
        stored: what became of it.
    """
    found = []
    for site in sites:
        if schemes[site.name] == "dense":
            continue
        dense, bytes_ = site_bytes(site, before), site_bytes(site, stored.by_name)
        if bytes_ > dense:
            found.append(
                f"{site.name}: {schemes[site.name]} is stored in {bytes_:,} bytes, padding "
                f"included, and the dense weight is of {dense:,}; keep it dense, or choose "
                "another scheme for it"
            )
    return found
