"""Walks an ONNX graph once and emits it as one Relax function `main(inputs..., parameters...)`."""

from __future__ import annotations

import gc
import json
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass
from tvm import relax

from ...passes.errors import LoweringError
from ...passes.structures.base import DOMAIN
from ..target import Target
from .attention import fused_attention
from .builder import Builder
from .dimensions import extent
from .fold import fold
from .graphs import marked
from .module import Signature
from .node import Node, refusal, way_out
from .normalization import normalised
from .operators import operators
from .patterns import ScaledAttention, root_mean_square, scaled_attention
from .structured import lower_structured
from .values import HALVES, SUPPORTED, Dim, Value, covered, known

BOUNDS = "undense.dim_bounds"
"""Metadata of a model: bounds of its symbolic dimensions, `{"seq": [2, 512]}`."""


def inlined(model: ir.Model) -> ir.Model:
    """The model without model-local functions, but for those of the domain `undense`."""
    foreign = [function for function in model.functions.values() if function.domain != DOMAIN]
    if not foreign:
        return model
    copy = model.clone()
    InlinePass(criteria=lambda function: function.domain != DOMAIN)(copy)
    return copy


def check(model: ir.Model, target: Target) -> None:
    """Finds what is not covered before any long work: walks the model and compiles nothing.

    Raises:
        LoweringError: an operator, attribute or type that the lowering does not cover; names the
            operators, the first node and the way out.
        TargetError: CUDA graphs for a dimension that the model has not, or that has no bound.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    closed = [t for t in tensors if isinstance(t, ir.ExternalTensor) and t.raw is None]
    with target.tvm():
        _check_graphs(Walk(model), target)
    gc.collect()  # the walk is cyclic, and a map of a file closes only when nobody looks into it
    for tensor in closed:
        tensor.release()


def _check_graphs(walk: Walk, target: Target) -> None:
    if target.graphs is not None:
        marked(walk.module, walk.builder.bounds, target.graphs.symbols)


def _check_names(graph: ir.Graph) -> None:
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value.dtype is not None and not covered(value.dtype) and value.uses():
            raise LoweringError(
                f"{value.name}: type {value.dtype.name} is not covered by TVM; {way_out()}"
            )
    unknown = [node for node in graph if not _covered(node)]
    if unknown:
        names = sorted({_operator(node) for node in unknown})
        more = f" ({len(unknown)} nodes: {', '.join(names)})" if len(unknown) > 1 else ""
        raise refusal(unknown[0], f"the TVM backend does not cover this operator{more}")


def _covered(node: ir.Node) -> bool:
    return node.domain == DOMAIN or (node.domain == "" and node.op_type in operators())


def _operator(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


class Walk:
    """One walk: the Relax module, its parameters and the bounds it relies on.

    Attributes:
        module: an IRModule with the function `main`.
        builder: holds parameters and bounds.
        inputs, outputs: name, dtype and shape of each.
    """

    def __init__(self, model: ir.Model) -> None:
        model = inlined(model)
        _check_names(model.graph)
        self.opset = model.opset_imports.get("", 1)
        block = relax.BlockBuilder()
        stated = json.loads(model.metadata_props.get(BOUNDS, "{}"))
        bounds = {name: (low or 0, high) for name, (low, high) in stated.items()}
        self.builder = Builder(block, _names(model.graph), bounds, _tied(model.graph))
        self.values: dict[ir.Value, Value] = {}
        variables = [self._input(value) for value in model.graph.inputs]
        failure: LoweringError | None = None
        with block.function("main"):
            with block.dataflow():
                try:
                    results = self._nodes(model.graph)
                except LoweringError as error:
                    # A builder that is left half-way complains on stderr: end it properly first.
                    failure, results = error, []
                bound = [block.emit_output(result) for result in results]
            parameters = self.builder.parameters.variables
            block.emit_func_output(relax.Tuple(bound), [*variables, *parameters])
        if failure is not None:
            raise failure
        self.module = block.get()
        # What follows the inputs is weights, of which a call need not check all shapes again.
        main = self.module["main"].with_attr("num_input", len(variables))
        self.module.update_func(self.module.get_global_var("main"), main)
        self.inputs = [_signature(self.values[value], value) for value in model.graph.inputs]
        self.outputs = [_signature(self.values[value], value) for value in model.graph.outputs]

    def _input(self, value: ir.Value) -> Any:
        name = str(value.name)
        if value.dtype not in SUPPORTED or value.shape is None:
            raise LoweringError(f"input {name}: its type or rank is not known; {way_out()}")
        shape = tuple(self._dimension(dim, name, axis) for axis, dim in enumerate(value.shape))
        dtype = SUPPORTED[value.dtype]
        kind = relax.TensorType([extent(dim) for dim in shape], dtype)
        variable = relax.Var(name, kind)
        self.values[value] = Value(dtype, shape, expr=variable, name=name)
        return variable

    def _dimension(self, dim: int | ir.SymbolicDim, name: str, axis: int) -> Dim:
        if isinstance(dim, int):
            return dim
        return self.builder.dimension(dim.value or f"{name}_{axis}")

    def _nodes(self, graph: ir.Graph) -> list[Any]:
        for node in graph:
            self._node(node)
        return [self.builder.tensor(self._read(value)) for value in graph.outputs]

    def _node(self, node: ir.Node) -> None:
        inputs = node.inputs[:1] if node.domain == DOMAIN else node.inputs
        values = (None if value is None else self._read(value) for value in inputs)
        view = Node(node, tuple(values), self.opset)
        try:
            results = fold(self.builder, view) or self._pattern(node)
            if results is None:
                lowering = lower_structured if node.domain else operators()[node.op_type]
                lowered = lowering(self.builder, view)
                results = [lowered] if isinstance(lowered, Value) else list(lowered)
        except LoweringError:
            raise
        except Exception as error:
            raise refusal(node, _first_line(error)) from error
        self.values.update(zip(node.outputs, results, strict=False))

    def _pattern(self, node: ir.Node) -> list[Value] | None:
        """The output of a node that ends what one kernel computes."""
        result: Value | None = None
        if (norm := root_mean_square(node, self._constant)) is not None:
            x = self._read(norm.x)
            if x.dtype in HALVES:
                x = self.builder.cast(x, "float32")
            if norm.axis in (-1, x.rank - 1):
                result = normalised(self.builder, x, norm.epsilon, centered=False)
        elif (found := scaled_attention(node, self._constant)) is not None:
            query, key, value = (self._read(v) for v in (found.query, found.key, found.value))
            mask = None if found.mask is None else self._read(found.mask)
            if self._repeats(found, query, key):
                result = fused_attention(
                    self.builder, query, key, value, found.scale, mask, allow_empty=False
                )
        if result is None:
            return None
        # Casts on the way to the node were looked through.
        first = node.inputs[0]
        return [result if first is None else self.builder.cast(result, self._read(first).dtype)]

    def _repeats(self, found: ScaledAttention, query: Value, key: Value) -> bool:
        """Whether keys and values have the heads of the query, each as often as it is repeated."""
        if not found.repeats:
            return self.builder.same(query.shape[1], key.shape[1])
        batch, heads, *rest = key.shape
        kept = [batch, heads, None, *rest]
        for shape in map(self._constant, found.repeats):
            if shape is None or shape.size != 5:
                return False
            if not all(
                dim is None or self.builder.same(length, 1) or self.builder.same(length, dim)
                for length, dim in zip(shape, kept, strict=True)
            ):
                return False
            if not self.builder.same(heads * shape[2], query.shape[1]):
                return False
        return True

    def _constant(self, value: ir.Value) -> NDArray[Any] | None:
        return self._read(value).host

    def _read(self, value: ir.Value) -> Value:
        if value not in self.values:
            self.values[value] = self._initializer(value)
        return self.values[value]

    def _initializer(self, value: ir.Value) -> Value:
        tensor = value.const_value
        if tensor is None:
            raise LoweringError(f"{value.name}: neither computed nor an initializer; mend the file")
        if tensor.dtype not in SUPPORTED:
            raise LoweringError(
                f"{value.name}: type {tensor.dtype.name} is not covered; {way_out()}"
            )
        return known(tensor.numpy(), SUPPORTED[tensor.dtype], str(value.name))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _tied(graph: ir.Graph) -> frozenset[str]:
    """Weights that are gathered from and, transposed, multiplied with."""
    return frozenset(str(name) for name, value in graph.initializers.items() if _is_tied(value))


def _is_tied(value: ir.Value) -> bool:
    uses = list(value.uses())
    gathered = any(node.op_type == "Gather" and index == 0 for node, index in uses)
    return gathered and any(_multiplies(node, index) for node, index in uses)


def _multiplies(node: ir.Node, index: int) -> bool:
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return index == 1 and transposed is not None and bool(transposed.value)
    if node.op_type != "Transpose":
        return False
    return any(user.op_type == "MatMul" and at == 1 for user, at in node.outputs[0].uses())


def _names(graph: ir.Graph) -> frozenset[str]:
    """Symbols that are the length of some axis by themselves."""
    shapes = [value.shape for value in graph.inputs if value.shape is not None]
    dims = [dim.value for shape in shapes for dim in shape if isinstance(dim, ir.SymbolicDim)]
    return frozenset(name for name in dims if name is not None and name.isidentifier())


def _signature(value: Value, declared: ir.Value) -> Signature:
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
    return Signature(str(declared.name), value.dtype, shape)
