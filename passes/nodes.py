"""What a structured node carries: its scheme, site and shape as metadata, its tensors as inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from .errors import LoadError
from .scheme import parse_scheme
from .structures.base import DOMAIN, Factors, Structure

SCHEME, SITE = "undense.scheme", "undense.site"
OUT_FEATURES, IN_FEATURES = "undense.out_features", "undense.in_features"


@dataclass(frozen=True, eq=False)
class StructuredNode:
    """A node of the domain `undense`, read back.

    Attributes:
        node: the node; its first input is the activation, or the indices of a gather.
        site: name of the site whose weight it stands for.
        structure: resolved hyper-parameters.
        tensors: packed initializers by their suffix, in the order of the inputs.
        out_features, in_features: shape of the weight it stands for.
    """

    node: ir.Node
    site: str
    structure: Structure
    tensors: dict[str, ir.TensorProtocol]
    out_features: int
    in_features: int

    @property
    def gathers(self) -> bool:
        """Whether the node gathers rows instead of multiplying."""
        return self.node.op_type == f"{self.structure.op_type}Gather"

    def factors(self) -> Factors:
        """The logical factors, unpacked."""
        return self.structure.unpack(self.tensors, self.out_features, self.in_features)


def metadata(
    site: str, structure: Structure, out_features: int, in_features: int
) -> dict[str, str]:
    """The metadata that `read_node` wants on a structured node."""
    return {
        SCHEME: str(structure),
        SITE: site,
        OUT_FEATURES: str(out_features),
        IN_FEATURES: str(in_features),
    }


def structured_nodes(model: ir.Model) -> Iterator[StructuredNode]:
    """Every structured node of the graph, in order."""
    for node in model.graph:
        if node.domain == DOMAIN:
            yield read_node(node)


def read_node(node: ir.Node) -> StructuredNode:
    """The node with its structure and tensors.

    Raises:
        LoadError: the node was not written by undense, or its tensors are missing.
    """
    try:
        structure = parse_scheme(node.metadata_props[SCHEME])
        site = node.metadata_props[SITE]
        shape = (int(node.metadata_props[name]) for name in (OUT_FEATURES, IN_FEATURES))
        out_features, in_features = shape
    except KeyError as error:
        raise LoadError(
            f"node {node.name!r}: metadata {error} is missing; only models that undense wrote "
            "can be read back"
        ) from None
    tensors: dict[str, ir.TensorProtocol] = {}
    for value in node.inputs[1:]:
        if value is None or value.const_value is None:
            raise LoadError(f"node {node.name!r}: a packed tensor is missing; build it again")
        tensors[str(value.name).removeprefix(f"{site}.")] = value.const_value
    if not isinstance(structure, Structure):
        raise LoadError(f"node {node.name!r}: scheme {structure!r} is no structure")
    return StructuredNode(node, site, structure, tensors, out_features, in_features)
