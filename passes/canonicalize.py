"""`Gemm`, `MatMul`, `W @ x`, 1×1 `Conv` -> `undense.Dense(x, Wᵀ)` with adapters around it.

`undense.Dense(x: [..., in], weight: [in, out])` is a MatMul under a name of its own. It lives only
between this pass and `ReplaceDense`, which swaps it for a structured node or turns it back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .errors import PlanError
from .sites import Site, Use, find_sites
from .structures.base import DOMAIN
from .uses import float_attribute

DENSE = "Dense"


class CanonicalizeDense(ir.passes.InPlacePass):
    """Writes every use of the named sites that is no gather as `undense.Dense`."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            PlanError: a name that is no site of the model.
        """
        sites = {site.name: site for site in find_sites(model)[0]}
        for name in self.names:
            if name not in sites:
                raise PlanError(f"{name}: the model has no such site; `inspect` lists its sites")
        uses = [
            (sites[name], use)
            for name in self.names
            for use in sites[name].uses
            if use.form != "gather" and use.node.domain != DOMAIN
        ]
        for site, use in uses:
            to_dense(site, use)
        if uses:
            model.opset_imports.setdefault(DOMAIN, 1)
            function = dense_function(model.opset_imports[""])
            model.functions[function.identifier()] = function
        return ir.passes.PassResult(model, bool(uses))


def dense_function(opset: int) -> ir.Function:
    """`Dense(x, weight) = MatMul(x, weight)`."""
    x, weight = ir.Value(name="x"), ir.Value(name="weight")
    node = ir.node("MatMul", [x, weight])
    node.outputs[0].name = "y"
    graph = ir.Graph([x, weight], node.outputs, nodes=[node], opset_imports={"": opset})
    return ir.Function(DOMAIN, DENSE, graph=graph, attributes=[])


def to_dense(site: Site, use: Use) -> ir.Node:
    """Replaces the node of a use, which is no gather, by its dense form.

    Returns:
        The `undense.Dense` node, whose x is `[..., in_features]`.
    """
    if use.node.domain == DOMAIN:
        return use.node
    emitter = _Emitter(use, site)
    return emitter.take_place(_FORMS[use.form](emitter))


class _Emitter:
    """Collects the nodes that stand for one use, in order, with types and shapes."""

    def __init__(self, use: Use, site: Site) -> None:
        self.use, self.node, self.site = use, use.node, site
        self.tape = ir.tape.Tape()

    def take_place(self, new: ir.Value) -> ir.Node:
        """Puts the emitted nodes in the place of the old one; returns the Dense node."""
        old = self.node.outputs[0]
        dense = next(node for node in self.tape.nodes if node.domain == DOMAIN)
        name, output_name = self.node.name, old.name
        self.node.prepend(self.tape.nodes)
        new.type, new.shape = old.type or new.type, old.shape or new.shape
        new.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph = self.node.graph
        if graph is not None:
            graph.remove(self.node, safe=True)
        dense.name, new.name = name, output_name
        return dense

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        dims: Iterable[int | ir.SymbolicDim] | None,
        domain: str = "",
        **attributes: int | Sequence[int] | ir.TensorProtocol,
    ) -> ir.Value:
        """One node; its output has the type of the use, and `dims` if they are known."""
        metadata = dict(self.node.metadata_props)
        value = self.tape.op(
            op_type, inputs, attributes=attributes, domain=domain, metadata_props=metadata
        )
        value.dtype = self.use.dtype
        value.shape = None if dims is None else ir.Shape(dims)
        return value

    def dense(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        """`x Wᵀ`; `weight` is what the node read, a matrix."""
        if not self.use.transposed:
            weight = self.transpose(weight, (1, 0))
        dims = None if x.shape is None else (*x.shape[:-1], self.site.out_features)
        return self.op(DENSE, [x, weight], dims, DOMAIN)

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """The value with its axes permuted."""
        shape = value.shape
        dims = None if shape is None else [shape[axis] for axis in perm]
        return self.op("Transpose", [value], dims, perm=list(perm))

    def reshape(self, value: ir.Value, dims: Sequence[int]) -> ir.Value:
        """The value as `dims`."""
        target = self.constant(np.array(dims, np.int64))
        return self.op("Reshape", [value, target], dims)

    def constant(self, array: NDArray[np.generic]) -> ir.Value:
        """A Constant node."""
        value = self.op("Constant", [], array.shape, value=ir.tensor(array))
        value.dtype = ir.DataType.from_numpy(array.dtype)
        return value

    def scaled(self, value: ir.Value, factor: float) -> ir.Value:
        """`factor · value`; no node for 1."""
        if factor == 1:
            return value
        scale = self.constant(np.array(factor, self.use.dtype.numpy()))
        return self.op("Mul", [value, scale], value.shape)


def _matmul(emit: _Emitter) -> ir.Value:
    """`x @ W`: a row of one axis becomes a matrix and back."""
    x, weight = emit.use.x, emit.use.weight
    if x.shape is not None and len(x.shape) == 1:
        return _vector(emit, weight)
    return emit.dense(x, weight)


def _left_matmul(emit: _Emitter) -> ir.Value:
    """`W @ x = (xᵀ Wᵀ)ᵀ` over the last two axes."""
    x, weight = emit.use.x, emit.use.weight
    rank = 0 if x.shape is None else len(x.shape)
    if rank == 1:
        return _vector(emit, weight)
    swap = (*range(rank - 2), rank - 1, rank - 2)
    return emit.transpose(emit.dense(emit.transpose(x, swap), weight), swap)


def _vector(emit: _Emitter, weight: ir.Value) -> ir.Value:
    rows = emit.reshape(emit.use.x, (1, emit.site.in_features))
    return emit.reshape(emit.dense(rows, weight), (emit.site.out_features,))


def _gemm(emit: _Emitter) -> ir.Value:
    """`α A' B' + β C`: transposes, a Mul for α, a Mul for β and an Add, each only if needed."""
    x, weight = emit.use.x, emit.use.weight
    if emit.use.feature_axis == 0:
        x = emit.transpose(x, (1, 0))
    result = emit.dense(x, weight)
    if emit.use.weight_input == 0:
        result = emit.transpose(result, (1, 0))
    result = emit.scaled(result, float_attribute(emit.node, "alpha"))
    bias, beta = _bias(emit.node), float_attribute(emit.node, "beta")
    if bias is None or beta == 0:
        return result
    return emit.op("Add", [result, emit.scaled(bias, beta)], result.shape)


def _conv(emit: _Emitter) -> ir.Value:
    """A 1×1 convolution is a dense layer over the channels, which move to the last axis."""
    rank = len(emit.site.value.shape or ())
    kernel = emit.reshape(emit.use.weight, (emit.site.out_features, emit.site.in_features))
    channels_last = (0, *range(2, rank), 1)
    result = emit.dense(emit.transpose(emit.use.x, channels_last), kernel)
    bias = _bias(emit.node)
    if bias is not None:
        result = emit.op("Add", [result, bias], result.shape)
    return emit.transpose(result, (0, rank - 1, *range(1, rank - 1)))


_FORMS: dict[str, Callable[[_Emitter], ir.Value]] = {
    "matmul": _matmul,
    "left_matmul": _left_matmul,
    "gemm": _gemm,
    "conv": _conv,
}


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None
