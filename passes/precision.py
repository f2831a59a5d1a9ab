"""float32 model -> the same in float16 or bfloat16, with sums and exponentials left in float32.

Each floating value has a `Kind`, which follows from the node that computes it and from the kinds of
what that node reads. Casts stand only where a node reads a value of the other type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from .casts import MOVES, Casts, Kind, is_operator
from .constants import constant_tensor
from .errors import PrecisionError, SchemeError
from .half_constants import HalfConstants, fits, is_matrix

_HALVES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_FLOAT = ir.DataType.FLOAT


_SUMS = frozenset(
    [
        "CumProd",
        "CumSum",
        "Exp",
        "GlobalLpPool",
        "GroupNormalization",
        "InstanceNormalization",
        "LogSoftmax",
        "Log",
        "LpNormalization",
        "LpPool",
        "MeanVarianceNormalization",
        "Pow",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Softmax",
        "Sqrt",
    ]
)
"""Operators that lose too much in half precision, or leave its range."""

_ENTRY_WISE = frozenset(
    [
        "Abs",
        "Add",
        "Clip",
        "Div",
        "Max",
        "Mean",
        "Min",
        "Mul",
        "Neg",
        "Sub",
        "Sum",
        "Where",
    ]
)
"""Operators that stand between sums, or finish them."""

_ANY_TYPE = frozenset(["Cast", "IsInf", "IsNaN", "Shape", "Size"])
"""Operators to which the type of what they read makes no difference."""


def parse_dtype(text: str) -> ir.DataType:
    """The type that `float16` or `bfloat16` names.

    Raises:
        SchemeError: another name.
    """
    if text not in _HALVES:
        raise SchemeError(f"dtype {text!r} is not known; known are {', '.join(_HALVES)}")
    return _HALVES[text]


class ConvertFloats(ir.passes.InPlacePass):
    """Turns float32 weights, activations, inputs and outputs into a half type, as `.half()` does.

    Norms, softmax, exponentials, roots and sums compute in float32 between Casts, and so does what
    only they read. What follows from integers alone (positions, angles, masks) is float32 until it
    meets a half value; there it is limited to the finite range, so that no -3.4e38 of a mask
    becomes -inf. A model that is of the wanted type already stays as it is.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.dtype = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            PrecisionError: a model of another type than float32, a weight or constant beyond the
                range of the half type, or a value of unknown type; names it.
        """
        if not _wants_conversion(model, self.dtype):
            return ir.passes.PassResult(model, False)
        InlinePass()(model)
        _Conversion(model, self.dtype).run()
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, True)


def _wants_conversion(model: ir.Model, dtype: ir.DataType) -> bool:
    """Whether the model computes in float32; its matrices tell, or else its inputs."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    floats = [t for t in tensors if t is not None and t.dtype.is_floating_point()]
    matrices = [tensor for tensor in floats if len(tensor.shape) >= 2]
    found: set[ir.DataType | None] = {tensor.dtype for tensor in matrices or floats}
    found = found or {value.dtype for value in model.graph.inputs}
    others = {*_HALVES.values(), ir.DataType.DOUBLE} - {dtype}
    there = sorted(other.numpy().name for other in others & found)
    if there:
        raise PrecisionError(
            f"dtype {dtype.numpy().name}: the model is of {there[0]} already; leave dtype out, or "
            "give the model in float32"
        )
    return _FLOAT in found


class _Conversion:
    """One run over the nodes in order, which decides on each kind and puts in the Casts.

    Values get new types; the old ones may belong to a model that this one is a clone of, too.
    """

    def __init__(self, model: ir.Model, dtype: ir.DataType) -> None:
        self.model, self.graph, self.dtype = model, model.graph, dtype
        self.constants = HalfConstants(model.graph, dtype)
        self.kinds: dict[ir.Value, Kind] = {}
        self.casts = Casts(self.constants, self.kinds)
        self.nodes = [node for node in self.graph if not self._is_constant(node)]
        self.for_sums = self._read_by_sums_alone()

    def run(self) -> None:
        """Converts everything."""
        for value in self.graph.inputs:
            if value.dtype in (_FLOAT, self.dtype):
                value.type, self.kinds[value] = ir.TensorType(self.dtype), Kind.HALF
        for node in self.nodes:
            self._convert(node)
        self._finish_outputs()
        self.constants.finish()

    def _is_constant(self, node: ir.Node) -> bool:
        return all(constant_tensor(value) is not None for value in node.outputs)

    def _read_by_sums_alone(self) -> set[ir.Node]:
        """Entry-wise nodes whose result goes to sums and to nothing else."""
        found: set[ir.Node] = set()
        for node in reversed(self.nodes):
            if not is_operator(node, _ENTRY_WISE):
                continue
            (result,) = node.outputs
            readers = [reader for reader, _ in result.uses()]
            for_sums = (reader in found or is_operator(reader, _SUMS) for reader in readers)
            if readers and not result.is_graph_output() and all(for_sums):
                found.add(node)
        return found

    def _convert(self, node: ir.Node) -> None:
        for value in node.outputs:
            if value.uses() and not isinstance(value.type, ir.TensorType):
                raise PrecisionError(
                    f"node {node.name!r}: its output {value.name!r} is no tensor of a known type; "
                    "export the model with types, or leave dtype out"
                )
        if node.op_type == "Cast" and not node.domain:
            self._cast(node)
        elif is_operator(node, _ANY_TYPE):
            return
        elif is_operator(node, _SUMS):
            self._in_float32(node, Kind.WIDE)
        elif is_operator(node, _ENTRY_WISE) or is_operator(node, MOVES):
            self._follow(node)
        elif _schema(self.model, node) is None or _graphs(node):
            self._in_float32(node, Kind.ROUNDED)
        else:
            self._compute(node)

    def _cast(self, node: ir.Node) -> None:
        """A Cast of the model's own: it reads what is there, and its type is its own."""
        (source,), (result,) = node.inputs, node.outputs
        kind = self.kinds.get(source) if source is not None else None
        if result.dtype == self.dtype:
            self.kinds[result] = Kind.HALF
        elif result.dtype == _FLOAT:
            self.kinds[result] = Kind.ROUNDED if kind is Kind.HALF else kind or Kind.FREE

    def _follow(self, node: ir.Node) -> None:
        """An entry-wise node or a move: of the kind of what it reads."""
        kind = self._met(node)
        if node in self.for_sums and kind is Kind.HALF:
            kind = Kind.ROUNDED
        self._read_as(node, kind)

    def _met(self, node: ir.Node) -> Kind:
        """The kind of the result of values that meet, constants left aside."""
        floats = [value for value in node.inputs if value is not None and self._is_float(value)]
        kinds = {self.kinds[value] for value in floats if value in self.kinds}
        if not kinds and is_operator(node, MOVES) and self._moves_weight(node):
            return Kind.HALF
        if kinds <= {Kind.FREE}:
            return Kind.FREE
        if kinds <= {Kind.FREE, Kind.WIDE}:
            return Kind.WIDE
        if Kind.WIDE in kinds:
            return Kind.ROUNDED
        return Kind.ROUNDED if kinds == {Kind.ROUNDED} and is_operator(node, MOVES) else Kind.HALF

    def _moves_weight(self, node: ir.Node) -> bool:
        tensors = (constant_tensor(value) for value in node.inputs[:1] if value is not None)
        return any(
            tensor is not None
            and tensor.dtype == _FLOAT
            and is_matrix(tensor)
            and (node.op_type == "Gather" or fits(tensor, self.dtype))
            for tensor in tensors
        )

    def _compute(self, node: ir.Node) -> None:
        """A product, activation or the like: in half, where ONNX has it in half at all."""
        halves, schema = self._half_inputs(node), _schema(self.model, node)
        if schema is not None and "stash_type" in schema.attributes:
            node.attributes["stash_type"] = ir.AttrInt64("stash_type", int(_FLOAT))
        if schema is not None and "softmax_precision" in schema.attributes:
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", int(_FLOAT))
        floats = [value for value in node.inputs if value is not None and self._is_float(value)]
        if not floats:
            self._set(node, Kind.FREE)
            return
        if halves is None:
            self._in_float32(node, Kind.ROUNDED)
            return
        weights = (constant_tensor(value) for value in floats)
        kinds = {self.kinds[value] for value in floats if value in self.kinds}
        if kinds <= {Kind.FREE} and not any(t is not None and is_matrix(t) for t in weights):
            self._in_float32(node, Kind.FREE)
            return
        bound = set()
        for index, value in enumerate(node.inputs):
            if value is not None and self._is_float(value):
                if index in halves:
                    bound.add(halves[index])
                self._read(node, index, half=index in halves)
        assert schema is not None
        for value, formal in zip(
            node.outputs, _formals(schema.outputs, len(node.outputs)), strict=True
        ):
            if value.dtype == _FLOAT:
                half = formal in bound
                value.type = ir.TensorType(self.dtype if half else _FLOAT)
                self.kinds[value] = Kind.HALF if half else Kind.WIDE

    def _half_inputs(self, node: ir.Node) -> dict[int, str] | None:
        """The type variable of each input that may be half; None if no input may."""
        schema = _schema(self.model, node)
        if schema is None:
            return None
        name = f"tensor({self.dtype.numpy().name})"
        allowed = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if name in constraint.allowed_type_strs
        }
        formals = _formals(schema.inputs, len(node.inputs))
        found = {index: formal for index, formal in enumerate(formals) if formal in allowed}
        return found if 0 in found else None

    def _in_float32(self, node: ir.Node, kind: Kind) -> None:
        """Leaves a node, and the graphs within it, as they are, between Casts."""
        floats = [value for value in _reads(node) if self._is_float(value)]
        if all(self.kinds.get(value, Kind.FREE) is Kind.FREE for value in floats):
            kind = Kind.FREE
        for index, value in enumerate(node.inputs):
            if value is not None and self._is_float(value):
                self._read(node, index, half=False)
        for graph in _graphs(node):
            self._in_graph(graph)
        self._set(node, kind)

    def _in_graph(self, graph: ir.Graph) -> None:
        """Lets the nodes of a graph within a node read float32 from outside."""
        for inner in ir.traversal.RecursiveGraphIterator(graph):
            for index, value in enumerate(inner.inputs):
                if value is not None and self.kinds.get(value) is Kind.HALF:
                    inner.replace_input_with(index, self.casts.wide(value))
        for index, value in enumerate(graph.outputs):
            if self.kinds.get(value) is Kind.HALF:
                graph.outputs[index] = self.casts.wide(value)

    def _read_as(self, node: ir.Node, kind: Kind) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and self._is_float(value):
                self._read(node, index, half=kind is Kind.HALF)
        self._set(node, kind)

    def _set(self, node: ir.Node, kind: Kind) -> None:
        for value in node.outputs:
            if value.dtype == _FLOAT:
                value.type = ir.TensorType(self.dtype if kind is Kind.HALF else _FLOAT)
                self.kinds[value] = kind

    def _is_float(self, value: ir.Value) -> bool:
        """Whether the conversion has to do with a value: a kind of its own, or a constant."""
        tensor = constant_tensor(value)
        if value in self.kinds or tensor is None:
            return value in self.kinds
        return tensor.dtype in (_FLOAT, self.dtype)

    def _read(self, node: ir.Node, index: int, *, half: bool) -> None:
        value = node.inputs[index]
        assert value is not None
        if half and value not in self.kinds:
            node.replace_input_with(index, self.constants.of(value, node))
        else:
            node.replace_input_with(
                index, self.casts.narrow(value) if half else self.casts.wide(value)
            )

    def _finish_outputs(self) -> None:
        """Gives every floating output of the graph the half type, under its own name."""
        for index, value in enumerate(list(self.graph.outputs)):
            if not self._is_float(value) or value.dtype == self.dtype:
                continue
            if value not in self.kinds:
                self.graph.outputs[index] = self.constants.of(value, None)
                continue
            name = str(value.name)
            result = self.casts.narrow(value)
            if result.is_graph_output() or result.is_graph_input() or result.producer() is None:
                result = self.casts.inserted(result, "Identity", self.dtype, [result])
            value.name = self.constants.free_name(f"{name}/float32")
            result.name = name
            self.graph.outputs[index] = result


def _graphs(node: ir.Node) -> list[ir.Graph]:
    attributes = node.attributes.values()
    return [entry.as_graph() for entry in attributes if entry.type == ir.AttributeType.GRAPH]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and what the graphs within it read."""
    yield from (value for value in node.inputs if value is not None)
    for graph in _graphs(node):
        yield from graph.outputs
        for inner in ir.traversal.RecursiveGraphIterator(graph):
            yield from (value for value in inner.inputs if value is not None)


def _schema(model: ir.Model, node: ir.Node) -> onnx.defs.OpSchema | None:
    """What ONNX says of an operator; None for those of other domains."""
    if node.domain:
        return None
    version = model.opset_imports.get("", 1)
    return onnx.defs.get_schema(node.op_type, version, node.domain)


def _formals(parameters: Sequence[Any], count: int) -> list[str]:
    """The type of each of `count` parameters, of which the last may stand for many."""
    types = [parameter.type_str for parameter in parameters]
    return [types[min(index, len(types) - 1)] for index in range(count)]
