"""`show(model)`: a stable text of a graph, without the values of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

_SHOWN_ELEMENTS = 8
"""Integer attributes up to this size are shown with their values (axes, shapes, splits), and so
are single numbers."""


def show(model: ir.Model) -> str:
    """The graph and the functions of a model as text that does not depend on internal names.

    Names are kept for inputs, outputs and initializers; every other value is numbered in order of
    appearance. Initializers, attributes and functions are sorted. Neither weights nor versions
    are shown, so that two texts differ where the structure of the models does.
    """
    graph = model.graph
    names = _Names(graph)
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    lines = [f"graph({_typed(inputs, names)}) -> {_typed(graph.outputs, names)}"]
    for name, value in sorted(graph.initializers.items()):
        held = value if value.const_value is None else value.const_value
        lines.append(f"  const {name}: {_type(held)}")
    lines += _nodes(graph, names, "  ")
    for identifier in sorted(model.functions):
        lines += ["", *_function(model.functions[identifier])]
    return "\n".join(lines) + "\n"


class _Names:
    """Values to canonical names."""

    def __init__(self, graph: ir.Graph | ir.Function) -> None:
        self._names: dict[ir.Value, str] = {}
        kept = [*graph.inputs, *graph.outputs]
        if isinstance(graph, ir.Graph):
            kept += graph.initializers.values()
        self.keep(kept)

    def keep(self, values: Iterable[ir.Value]) -> None:
        """Lets values go by their own names."""
        self._names.update({value: str(value.name) for value in values})

    def of(self, value: ir.Value | None) -> str:
        """The name of a value: `_` for one that is left out."""
        if value is None or value.name == "":
            return "_"
        return self._names.setdefault(value, f"%{self._numbered()}")

    def _numbered(self) -> int:
        return sum(name.startswith("%") for name in self._names.values())


def _nodes(nodes: Iterable[ir.Node], names: _Names, indent: str) -> Iterator[str]:
    for node in nodes:
        arguments = [names.of(value) for value in node.inputs]
        arguments += [
            f"{attribute.name}={_attribute(attribute)}"
            for attribute in sorted(node.attributes.values(), key=lambda item: item.name)
            if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        ]
        outputs = ", ".join(names.of(value) for value in node.outputs)
        yield f"{indent}{outputs} = {_operator(node)}({', '.join(arguments)})"
        for attribute in sorted(node.attributes.values(), key=lambda item: item.name):
            yield from _bodies(attribute, names, indent + "  ")


def _bodies(attribute: ir.Attr, names: _Names, indent: str) -> Iterator[str]:
    graphs: Iterable[ir.Graph] = ()
    if attribute.type == ir.AttributeType.GRAPH:
        graphs = [attribute.as_graph()]
    elif attribute.type == ir.AttributeType.GRAPHS:
        graphs = attribute.as_graphs()
    for graph in graphs:
        names.keep([*graph.inputs, *graph.initializers.values()])
        inputs, outputs = (_typed(side, names) for side in (graph.inputs, graph.outputs))
        yield f"{indent}{attribute.name}({inputs}) -> {outputs}"
        yield from _nodes(graph, names, indent + "  ")


def _function(function: ir.Function) -> Iterator[str]:
    names = _Names(function)
    parameters = [names.of(value) for value in function.inputs]
    parameters += [f"{name}=" for name in sorted(function.attributes)]
    overload = f".{function.overload}" if function.overload else ""
    outputs = ", ".join(names.of(value) for value in function.outputs)
    head = f"def {function.domain}.{function.name}{overload}({', '.join(parameters)}) -> {outputs}"
    yield head
    yield from _nodes(function, names, "  ")


def _operator(node: ir.Node) -> str:
    domain = f"{node.domain}." if node.domain else ""
    overload = f".{node.overload}" if node.overload else ""
    return f"{domain}{node.op_type}{overload}"


def _typed(values: Iterable[ir.Value], names: _Names) -> str:
    return ", ".join(f"{names.of(value)}: {_type(value)}" for value in values)


def _type(value: ir.Value | ir.TensorProtocol) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    return f"{dtype}[{_dims(value.shape)}]" if value.shape is not None else f"{dtype}[...]"


def _dims(shape: ir.ShapeProtocol) -> str:
    return ",".join("?" if str(dim) == "None" else str(dim) for dim in shape.dims)


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor(attribute.as_tensor())
    if attribute.type in (ir.AttributeType.SPARSE_TENSOR, ir.AttributeType.TENSORS):
        return "..."
    return _plain(attribute.value)


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tensor(tensor: ir.TensorProtocol) -> str:
    text = f"{tensor.dtype.name.lower()}[{_dims(tensor.shape)}]"
    integers = tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32)
    if tensor.size == 1 or (integers and tensor.size <= _SHOWN_ELEMENTS):
        return f"{text} {_plain(tensor.numpy().tolist())}"
    return text
