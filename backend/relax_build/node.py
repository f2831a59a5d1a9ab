"""`Node`: an ONNX node as the operator families see it, and how they refuse one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ...passes.errors import LoweringError
from ..kernels.gpu import on_gpu
from .builder import Builder
from .values import Dim, Value


@dataclass(frozen=True, eq=False)
class Node:
    """A node with the values of its inputs.

    Attributes:
        node: the node in the graph.
        inputs: one entry an input, None where an optional one is left out.
        opset: version of the standard domain.
    """

    node: ir.Node
    inputs: tuple[Value | None, ...]
    opset: int

    def __getitem__(self, index: int) -> Value:
        """A required input."""
        value = self.get(index)
        if value is None:
            raise self.refusal(f"input {index} is missing")
        return value

    def get(self, index: int) -> Value | None:
        """An optional input."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or what ONNX assumes without it."""
        attribute = self.node.attributes.get(name)
        if attribute is None or attribute.value is None:
            return default
        if attribute.type == ir.AttributeType.STRING:
            return attribute.as_string()
        if attribute.type == ir.AttributeType.INTS:
            return list(attribute.as_ints())
        if attribute.type == ir.AttributeType.FLOATS:
            return list(attribute.as_floats())
        return attribute.value

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front."""
        if not -rank <= axis < max(rank, 1):
            raise self.refusal(f"axis {axis} is outside of {rank} axes")
        return axis % rank if rank else 0

    def known(self, index: int, what: str) -> NDArray[Any]:
        """An input whose content must be known while building; symbolic entries are allowed."""
        value = self[index]
        if value.host is None:
            raise self.refusal(f"{what} depends on the data, so its shape is not known")
        return value.host

    def ints(self, index: int, name: str) -> list[Dim] | None:
        """Integers given as an attribute in older opsets and as an input in newer ones."""
        attribute = self.attribute(name)
        if attribute is not None:
            return list(attribute)
        if self.get(index) is None:
            return None
        return list(self.known(index, name).reshape(-1).tolist())

    def used(self, index: int) -> bool:
        """Whether an optional output is wanted."""
        outputs = self.node.outputs
        return (
            index < len(outputs)
            and bool(outputs[index].name)
            and (bool(outputs[index].uses()) or outputs[index].is_graph_output())
        )

    def refusal(self, cause: str) -> LoweringError:
        """The error for a node that is not covered."""
        return refusal(self.node, cause)


def refusal(node: ir.Node, cause: str) -> LoweringError:
    """The error for a node that is not covered: operator, node, cause and the way out."""
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return LoweringError(f"{operator} (node {node.name!r}): {cause}; {way_out()}")


def way_out() -> str:
    """What to do with a model that is not covered: the other engine, on the same device."""
    target = "ort-cuda" if on_gpu() else "ort-cpu"
    return f"compile for target {target}, which covers all of ONNX"


Lowering = Callable[[Builder, Node], Value | Sequence[Value]]
"""Lowers one node; returns its outputs."""
