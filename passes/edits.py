"""Edits of constants: computed from others, in float64, whenever they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .constants import PATH_OPS, read_tensor

Array = NDArray[np.float64]


def edit(value: ir.Value, change: Callable[[Array], Array]) -> None:
    """`value ← change(value)`; shape and type stay."""
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name} holds no data")
    shape = tensor.shape.numpy()
    value.const_value = computed(
        lambda: change(read_tensor(tensor).astype(np.float64)), shape, tensor.dtype, value.name
    )


def computed(
    read: Callable[[], Array], shape: Sequence[int], dtype: ir.DataType, name: str | None
) -> ir.LazyTensor:
    """A tensor that is computed in float64 and rounded once; it holds no memory meanwhile."""

    def rounded() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(read(), dtype.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(rounded, dtype=dtype, shape=ir.Shape(shape), name=name)


def private(node: ir.Node, index: int) -> ir.Value:
    """The initializer that `node` reads as its input `index`: a copy, if others read it too."""
    value = node.inputs[index]
    if value is None or value.const_value is None or node.graph is None:
        raise ValueError(f"{node.name}: its input {index} is no constant")
    if len(value.uses()) == 1 and not value.is_graph_output():
        return value
    copy = initializer(node.graph, str(value.name), value.const_value)
    node.replace_input_with(index, copy)
    return copy


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of that name, or of the next that is free."""
    taken = {value.name for node in graph.all_nodes() for value in node.outputs}
    taken |= set(graph.initializers) | {value.name for value in graph.inputs}
    free = next(found for found in _candidates(name) if found not in taken)
    value = ir.Value(
        name=free,
        const_value=tensor,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
    )
    graph.register_initializer(value)
    return value


def number(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """An initializer of a few numbers: one that holds them by that name, or a new one."""
    tensor = ir.tensor(array)
    known = graph.initializers.get(name)
    held = None if known is None else known.const_value
    if known is not None and held is not None and held.dtype == tensor.dtype:
        same = np.array_equal(held.numpy(), array)
        return known if same else initializer(graph, name, tensor)
    return initializer(graph, name, tensor)


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a constant, also behind Transpose and the like, once for each use."""
    found: list[ir.Node] = []
    for node, _ in value.uses():
        if not node.domain and node.op_type in PATH_OPS:
            found += readers(node.outputs[0])
        else:
            found.append(node)
    return found


def _candidates(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}.{number}" for number in count(2))


def bypass(node: ir.Node, value: ir.Value) -> None:
    """Lets everything behind `node` read `value`, which takes the name if it is an output."""
    result, graph = node.outputs[0], node.graph
    if result.is_graph_output():
        name = result.name
        result.name = None
        value.name = name
    result.replace_all_uses_with(value, replace_graph_outputs=True)
    if graph is not None:
        graph.remove(node, safe=True)


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads `value`, if it is the only one and the value is no output."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
