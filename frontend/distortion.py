"""What replaced weights do to a model's outputs: the dense model run with other weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ..passes.canonicalize import to_dense
from ..passes.errors import CalibrationError
from ..passes.sites import Site, Use, find_sites
from .dense import Run, on_disk, open_session
from .sample_check import Sample

Measure = Literal["kl", "relative_mse"]

Arrays = Mapping[str, NDArray[np.generic]]

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

    def of(self, weights: Mapping[str, NDArray[np.floating]]) -> float:
        """D with these W, `[out_features, in_features]`, by the names of their sites.

        Infinite if an output is then not finite where the dense model's is.
        """
        found, whole = 0.0, 0.0
        for sample, dense in zip(self._samples, self._dense, strict=True):
            outputs = self.run(weights, sample)
            for name in self.outputs:
                lost, size = self._compare(dense[name], outputs[name])
                found, whole = found + lost, whole + size
        if not np.isfinite(found):
            return float("inf")
        return found / whole if whole else 0.0

    def run(self, weights: Mapping[str, NDArray[np.floating]], inputs: Arrays) -> dict[str, Any]:
        """The model's outputs for `inputs`, with these weights."""
        given = {
            slot.name: slot.stored(weight)
            for name, weight in weights.items()
            for slot in self._slots[name]
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


class _Slot:
    """An input of the graph that takes a weight, or its transpose."""

    def __init__(self, name: str, transposed: bool, dtype: np.dtype[np.generic]) -> None:
        self.name, self.transposed, self.dtype = name, transposed, dtype

    def stored(self, weight: NDArray[np.floating]) -> NDArray[np.generic]:
        """W as the graph reads it."""
        seen = weight.T if self.transposed else weight
        return np.ascontiguousarray(seen, self.dtype)


def _expose(graph: ir.Graph, site: Site) -> list[_Slot]:
    """Makes the weight of a site an input with itself as default: W for gathers, Wᵀ for others."""
    weight = site.weight()
    made: dict[tuple[bool, ir.DataType], ir.Value] = {}
    slots = []
    for use in site.uses:
        gathers = use.form == "gather"
        key = not gathers, use.dtype
        if key not in made:
            slot = _Slot(f"undense.{site.name}.{len(made)}", not gathers, use.dtype.numpy())
            made[key] = _input(graph, slot, weight)
            slots.append(slot)
        _reads(site, use, made[key])
    return slots


def _input(graph: ir.Graph, slot: _Slot, weight: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(slot.stored(weight), name=slot.name)
    value = ir.Value(
        name=slot.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    graph.inputs.append(value)
    return value


def _reads(site: Site, use: Use, value: ir.Value) -> None:
    if use.form == "gather":
        use.node.replace_input_with(use.weight_input, value)
        return
    node = to_dense(site, use)
    node.replace_input_with(1, value)
    node.domain, node.op_type = "", "MatMul"


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
