"""`v = path(constant)`: constants of a graph, seen through Transpose, Identity and Cast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

PATH_OPS = ("Transpose", "Identity", "Cast", "Reshape")
"""What may stand between a constant and its reader; a Reshape only where it makes a matrix of a
1×1 kernel."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, eq=False)
class ConstantPath:
    """What a reader sees of a constant.

    Attributes:
        value: the initializer or Constant output.
        tensor: its data.
        nodes: the nodes of `PATH_OPS` from `value` to the reader.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The name of the constant."""
        return str(self.value.name)

    @property
    def dtypes(self) -> tuple[ir.DataType, ...]:
        """The type of the data, then the target of each Cast."""
        casts = (node.attributes["to"].as_int() for node in self.nodes if node.op_type == "Cast")
        return (self.tensor.dtype, *map(ir.DataType, casts))

    @property
    def permutation(self) -> tuple[int, ...]:
        """Axis i of what the reader sees is axis `permutation[i]` of the data."""
        axes = tuple(range(len(self.tensor.shape)))
        for node in self.nodes:
            if node.op_type == "Transpose":
                axes = tuple(axes[axis] for axis in _permutation(node, len(axes)))
            elif node.op_type == "Reshape":
                axes = axes[:2]
        return axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the reader sees."""
        dims = self.tensor.shape.numpy()
        return tuple(dims[axis] for axis in self.permutation)

    @property
    def roundings(self) -> tuple[ir.DataType, ...]:
        """The types that the values were rounded to on the way: Casts that widen change nothing."""
        exact, *targets = self.dtypes
        rounded = []
        for target in targets:
            if not np.can_cast(exact.numpy(), target.numpy(), "safe"):
                rounded.append(target)
                exact = target
        return tuple(rounded)

    def read(self) -> NDArray[Any]:
        """A fresh array of what the reader sees; the map of external data is closed again."""
        return read_tensor(self.tensor, self.nodes)


def read_tensor(tensor: ir.TensorProtocol, nodes: tuple[ir.Node, ...] = ()) -> NDArray[Any]:
    """`path(tensor)` as a fresh C-contiguous array that keeps no map of external data open."""
    opened = isinstance(tensor, ir.ExternalTensor) and tensor.raw is None
    array = tensor.numpy()
    for node in nodes:
        if node.op_type == "Transpose":
            array = array.transpose(_permutation(node, array.ndim))
        elif node.op_type == "Reshape":
            array = array.reshape(array.shape[:2])
        elif node.op_type == "Cast":
            array = array.astype(ir.DataType(node.attributes["to"].as_int()).numpy(), copy=False)
    array = np.array(array, order="C")
    if opened:
        tensor.release()  # type: ignore[attr-defined]
    return array


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The data of an initializer or of a Constant node; None for every other value."""
    producer = value.producer()
    if producer is not None and "sparse_value" in producer.attributes:
        return None
    return ir.convenience.get_const_tensor(value)


def trace(value: ir.Value | None) -> ConstantPath | None:
    """The constant behind `value`, or None if there is none or other operators stand between."""
    nodes: list[ir.Node] = []
    while value is not None:
        tensor = constant_tensor(value)
        if tensor is not None:
            path = ConstantPath(value, tensor, tuple(reversed(nodes)))
            return path if _reshapes_are_matrices(path) else None
        producer = value.producer()
        if producer is None or not _on_path(producer):
            return None
        nodes.append(producer)
        value = producer.inputs[0]
    return None


def quantised(dtype: ir.DataType) -> bool:
    """Whether only a quantised weight has this type: numbers of eight bits or fewer."""
    return (dtype.is_integer() or dtype.is_floating_point()) and dtype.bitwidth <= 8


def static_values(graph: ir.Graph) -> set[ir.Value]:
    """Outputs of nodes that depend on constants alone, and so are the same at every run."""
    static: set[ir.Value] = set()
    for node in graph:
        if any(attr.type == ir.AttributeType.GRAPH for attr in node.attributes.values()):
            continue
        if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
            continue
        inputs = [value for value in node.inputs if value is not None]
        if all(value in static or constant_tensor(value) is not None for value in inputs):
            static.update(node.outputs)
    return static


def sources(value: ir.Value) -> Iterator[tuple[ir.Value, ir.TensorProtocol, ir.Node]]:
    """The constants that a static value is computed from, each with the node that reads it."""
    seen: set[ir.Node] = set()
    pending = [value.producer()]
    while pending:
        node = pending.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        for source in node.inputs:
            if source is None:
                continue
            tensor = constant_tensor(source)
            if tensor is not None:
                yield source, tensor, node
            else:
                pending.append(source.producer())


def _on_path(node: ir.Node) -> bool:
    known = not node.domain and node.op_type in PATH_OPS
    return known and not any(attribute.is_ref() for attribute in node.attributes.values())


def _reshapes_are_matrices(path: ConstantPath) -> bool:
    """Whether each Reshape drops the unit axes behind the first two, and does no more."""
    for index, node in enumerate(path.nodes):
        if node.op_type != "Reshape":
            continue
        rows, *rest = ConstantPath(path.value, path.tensor, path.nodes[:index]).shape
        target = constant_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        if target is None or not rest or any(size != 1 for size in rest[1:]):
            return False
        if target.numpy().tolist() not in ([rows, rest[0]], [-1, rest[0]], [rows, -1]):
            return False
    return True


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    if "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    return tuple(reversed(range(rank)))
