"""`W -> Ŵ`, `x -> x̂`: the dense model with other weights and rounded activations in any site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ..passes.bias_correction import has_bias
from ..passes.canonicalize import to_dense
from ..passes.options import rounded_block
from ..passes.replace import Fitted
from ..passes.sites import Site, find_sites
from .dense import Run, on_disk, open_session
from .round_input import round_input

Kind = Literal["weight", "transposed", "bias", "block"]


@dataclass(frozen=True, eq=False)
class Exchange:
    """What stands in for the weight of a site, and for its activations.

    Attributes:
        weight: Ŵ, `[out_features, in_features]`; None for the dense one.
        bias_correction: what is added to the outputs, `[out_features]`; None for nothing.
        block: columns of x that are rounded to int8 with one scale; None to take x as it is.
    """

    weight: NDArray[np.floating] | None = None
    bias_correction: NDArray[np.floating] | None = None
    block: int | None = None

    @staticmethod
    def of(fitted: Fitted, shape: tuple[int, int]) -> Exchange:
        """What a fit makes of a weight `[out_features, in_features]` of that shape."""
        structure = fitted.structure
        factors = structure.unpack(fitted.tensors, *shape)
        return Exchange(structure.dense(factors), fitted.bias_correction, rounded_block(structure))


class ExchangeableModel:
    """The dense model, whose weights and roundings are inputs; by default it is as it was."""

    def __init__(self, run: Run, slots: Mapping[str, Sequence[_Slot]]) -> None:
        self._run, self._slots = run, slots

    def exchanged(self, exchanges: Iterable[tuple[str, Exchange]]) -> Run:
        """Runs with these weights by the names of their sites, which are taken one at a time."""
        given = {
            slot.name: stored
            for name, exchange in exchanges
            for slot in self._slots[name]
            if (stored := slot.stored(exchange)) is not None
        }
        return lambda inputs: self._run({**inputs, **given})


@contextmanager
def exchangeable(model: ir.Model, names: Iterable[str]) -> Iterator[ExchangeableModel]:
    """Runs the model while this lasts.

    Args:
        model: the captured dense model; it is not changed.
        names: of the sites whose weights will be exchanged.

    Raises:
        LoadError: ONNX Runtime cannot run the model.
    """
    exposed = model.clone()
    wanted = set(names)
    sites = [site for site in find_sites(exposed)[0] if site.name in wanted]
    slots = {site.name: _expose(exposed.graph, site) for site in sites}
    common.RemoveUnusedNodesPass()(exposed)
    with on_disk(exposed) as stored:
        yield ExchangeableModel(open_session(stored, lean=True), slots)


@dataclass(frozen=True)
class _Slot:
    """An input of the graph: a weight, its transpose, what corrects a bias, or a block."""

    name: str
    kind: Kind
    dtype: np.dtype[np.generic]

    def stored(self, exchange: Exchange) -> NDArray[np.generic] | None:
        """What the graph reads there; None for the default."""
        if self.kind == "block":
            return None if exchange.block is None else np.array([exchange.block], self.dtype)
        if self.kind == "bias":
            correction = exchange.bias_correction
            return None if correction is None else correction.astype(self.dtype)
        return None if exchange.weight is None else self._oriented(exchange.weight)

    def default(self, site: Site, dtype: ir.DataType) -> ir.TensorProtocol:
        """What is there without an exchange, made when it is written: all at once would be a model.

        Args:
            site: whose slot it is.
            dtype: `self.dtype` as ONNX names it.
        """
        if self.kind in ("bias", "block"):
            size = site.out_features if self.kind == "bias" else 1
            return ir.tensor(np.zeros(size, self.dtype), name=self.name)
        shape = (site.out_features, site.in_features)
        return ir.LazyTensor(
            lambda: ir.tensor(self._oriented(site.weight())),
            dtype,
            ir.Shape(shape[::-1] if self.kind == "transposed" else shape),
            name=self.name,
        )

    def _oriented(self, weight: NDArray[np.floating]) -> NDArray[np.generic]:
        seen = weight.T if self.kind == "transposed" else weight
        return np.ascontiguousarray(seen, self.dtype)


def _expose(graph: ir.Graph, site: Site) -> list[_Slot]:
    """Makes the weight of a site an input, its outputs correctable, and its activations roundable.

    By default nothing of that changes anything.
    """
    corrected = has_bias(site)
    slots: dict[_Slot, ir.Value] = {}

    def slot(kind: Kind, dtype: ir.DataType) -> ir.Value:
        made = _Slot(f"undense.{kind}.{dtype.name}.{site.name}", kind, dtype.numpy())
        if made not in slots:
            slots[made] = _input(graph, made.name, made.default(site, dtype))
        return slots[made]

    for use in site.uses:
        if use.form == "gather":
            use.node.replace_input_with(use.weight_input, slot("weight", use.dtype))
            continue
        weight = slot("transposed", use.dtype)
        bias = slot("bias", use.dtype) if corrected else None
        block = slot("block", ir.DataType.INT64)
        node = to_dense(site, use)
        round_input(graph, node, block, site.in_features, use.dtype)
        node.replace_input_with(1, weight)
        node.domain, node.op_type = "", "MatMul"
        if bias is not None:
            _add(node, bias)
    return list(slots)


def _input(graph: ir.Graph, name: str, default: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(default.shape.numpy()),
        type=ir.TensorType(default.dtype),
        const_value=default,
    )
    graph.register_initializer(value)
    graph.inputs.append(value)
    return value


def _add(node: ir.Node, bias: ir.Value) -> None:
    """Adds a vector to what a node computes."""
    product = node.outputs[0]
    added = ir.node("Add", [product, bias])
    total = added.outputs[0]
    total.type, total.shape = product.type, product.shape
    product.replace_all_uses_with(total, replace_graph_outputs=True)
    added.replace_input_with(0, product)
    if product.name is not None:
        total.name, product.name = product.name, f"{product.name}.product"
    node.append(added)
