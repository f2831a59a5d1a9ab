"""What replaced weights do to a model's outputs, measured on samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes.errors import CalibrationError
from .exchange import Arrays, Exchange, ExchangeableModel, exchangeable
from .sample_check import Sample
from .samples import Samples

Measure = Literal["kl", "relative_mse"]

_TOKENS = 512
"""That distortion is measured on, more or less."""

_ROWS = 512
"""Of logits whose probabilities are held in float64 at once."""


class Distortion:
    """`D(Ŵ) = KL(p ‖ p̂)` of logits, else `Σ‖y − ŷ‖² / Σ‖y‖²`, for weights Ŵ in place of W.

    KL is the mean over positions, in nats.

    Attributes:
        measure: `kl` where an output is logits, `relative_mse` of all floating outputs otherwise.
        outputs: names of the outputs that are compared.
    """

    def __init__(self, model: ExchangeableModel, samples: Sequence[Sample]) -> None:
        self._model, self._samples = model, samples
        self._dense = [model.run(sample, {}) for sample in samples]
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
            outputs = self._model.run(sample, exchanges)
            for name in self.outputs:
                lost, size = self._compare(dense[name], outputs[name])
                found, whole = found + lost, whole + size
        if not np.isfinite(found):
            return float("inf")
        return found / whole if whole else 0.0

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
    with exchangeable(model, names) as exchanged:
        yield Distortion(exchanged, samples)


def enough(samples: Iterable[Sample]) -> list[Sample]:
    """As many of the samples as distortion is measured on."""
    found: list[Sample] = []
    for sample in samples:
        found.append(sample)
        if Samples(tuple(found)).tokens >= _TOKENS:
            break
    return found


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
