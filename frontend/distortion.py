"""What replaced weights do to a model's outputs: the dense model run with other weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ..passes.bias_correction import has_bias
from ..passes.canonicalize import to_dense
from ..passes.errors import CalibrationError
from ..passes.sites import Site, Use, find_sites
from .dense import Run, on_disk, open_session
from .sample_check import Sample

Measure = Literal["kl", "relative_mse"]

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Exchange:
    """What stands in for the weight of a site.

    Attributes:
        weight: Ŵ, `[out_features, in_features]`.
        bias_correction: what is added to the outputs, `[out_features]`; None for nothing.
    """

    weight: NDArray[np.floating]
    bias_correction: NDArray[np.floating] | None = None


_ROWS = 512
"""Of logits whose probabilities are held in float64 at once."""


class Distortion:
    """`D(Ŵ) = KL(p ‖ p̂)` of logits, else `Σ‖y − ŷ‖² / Σ‖y‖²`, for weights Ŵ in place of W.

    The dense model runs in ONNX Runtime with the weights of its sites as inputs, so that any of
    them can be exchanged for a call. KL is the mean over positions, in nats.

    Attributes:
        measure: `kl` where an output is logits, `relative_mse` of all floating outputs otherwise.
        outputs: names of the outputs that are compared.
    """

    def __init__(self, run: Run, slots: Mapping[str, Sequence[_Slot]], samples: Sequence[Sample]):
        self._run, self._slots, self._samples = run, slots, samples
        self._dense = [run(sample) for sample in samples]
        logits = [name for name in self._dense[0] if _is_logits(name)]
        floats = [name for name, y in self._dense[0].items() if y.dtype.kind == "f"]
        self.measure: Measure = "kl" if logits else "relative_mse"
        self.outputs = tuple(logits or floats)
        for outputs in self._dense:
            self._check(outputs)

    def of(self, exchanges: Mapping[str, Exchange]) -> float:
        """D with these weights, by the names of their sites.

        Infinite if an output is then not finite where the dense model's is.
        """
        found, whole = 0.0, 0.0
        for sample, dense in zip(self._samples, self._dense, strict=True):
            outputs = self.run(exchanges, sample)
            for name in self.outputs:
                lost, size = self._compare(dense[name], outputs[name])
                found, whole = found + lost, whole + size
        if not np.isfinite(found):
            return float("inf")
        return found / whole if whole else 0.0

    def run(self, exchanges: Mapping[str, Exchange], inputs: Arrays) -> dict[str, Any]:
        """The model's outputs for `inputs`, with these weights."""
        given = {
            slot.name: stored
            for name, exchange in exchanges.items()
            for slot in self._slots[name]
            if (stored := slot.stored(exchange)) is not None
        }
        return self._run({**inputs, **given})

    def _compare(
        self, dense: NDArray[np.generic], other: NDArray[np.generic]
    ) -> tuple[float, float]:
        """What is lost, and what it is divided by."""
        if self.measure == "kl":
            return _kl(dense, other), float(np.prod(dense.shape[:-1]))
        want, got = (values.astype(np.float64).reshape(-1) for values in (dense, other))
        some = np.isfinite(want)
        return float(np.sum((got[some] - want[some]) ** 2)), float(np.sum(want[some] ** 2))

    def _check(self, outputs: Arrays) -> None:
        if not self.outputs:
            raise CalibrationError("the model has no floating output to measure distortion at")
        for name in self.outputs:
            if np.isnan(outputs[name].astype(np.float32)).any():
                raise CalibrationError(
                    f"output {name!r} of the dense model is not a number for a calibration "
                    "sample; mend the model or the samples"
                )


@contextmanager
def distortion(
    model: ir.Model, names: Iterable[str], samples: Sequence[Sample]
) -> Iterator[Distortion]:
    """Measures on `samples`, while this lasts.

    Args:
        model: the captured dense model; it is not changed.
        names: of the sites whose weights will be exchanged.
        samples: at least one.

    Raises:
        CalibrationError: the dense model gives no numbers for a sample.
        LoadError: ONNX Runtime cannot run the model.
    """
    exchanged = model.clone()
    wanted = set(names)
    sites = [site for site in find_sites(exchanged)[0] if site.name in wanted]
    slots = {site.name: _expose(exchanged.graph, site) for site in sites}
    common.RemoveUnusedNodesPass()(exchanged)
    with on_disk(exchanged) as stored:
        yield Distortion(open_session(stored, lean=True), slots, samples)


@dataclass(frozen=True)
class _Slot:
    """An input of the graph that takes a weight, its transpose, or the correction of a bias."""

    name: str
    kind: Literal["weight", "transposed", "bias"]
    dtype: np.dtype[np.generic]

    def stored(self, exchange: Exchange) -> NDArray[np.generic] | None:
        """What the graph reads there; None for the default."""
        if self.kind == "bias":
            correction = exchange.bias_correction
            return None if correction is None else correction.astype(self.dtype)
        seen = exchange.weight.T if self.kind == "transposed" else exchange.weight
        return np.ascontiguousarray(seen, self.dtype)


def _expose(graph: ir.Graph, site: Site) -> list[_Slot]:
    """Makes the weight of a site an input with itself as default, and its outputs correctable."""
    corrected = has_bias(site)
    slots: dict[_Slot, ir.Value] = {}

    def slot(kind: Literal["weight", "transposed", "bias"], use: Use) -> ir.Value:
        dtype = use.dtype.numpy()
        made = _Slot(f"undense.{kind}.{use.dtype.name}.{site.name}", kind, dtype)
        if made not in slots:
            nothing = np.zeros(site.out_features, dtype)
            default = None if kind == "bias" else made.stored(Exchange(site.weight()))
            slots[made] = _input(graph, made.name, nothing if default is None else default)
        return slots[made]

    for use in site.uses:
        if use.form == "gather":
            use.node.replace_input_with(use.weight_input, slot("weight", use))
            continue
        weight, bias = slot("transposed", use), slot("bias", use) if corrected else None
        node = to_dense(site, use)
        node.replace_input_with(1, weight)
        node.domain, node.op_type = "", "MatMul"
        if bias is not None:
            _add(node, bias)
    return list(slots)


def _input(graph: ir.Graph, name: str, default: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(default, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(default.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
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


def _is_logits(name: str) -> bool:
    return "logits" in name.lower()


def _kl(dense: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """`Σ_positions Σ_i p_i (log p_i − log p̂_i)` over the last axis."""
    p = dense.reshape(-1, dense.shape[-1])
    q = other.reshape(p.shape)
    return sum(
        _kl_of_rows(p[start : start + _ROWS], q[start : start + _ROWS])
        for start in range(0, len(p), _ROWS)
    )


def _kl_of_rows(dense: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    log_p, log_q = _log_softmax(dense), _log_softmax(other)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return float(np.maximum(terms.sum(axis=-1), 0).sum())


def _log_softmax(logits: NDArray[np.generic]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return found
