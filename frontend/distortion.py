"""What replaced weights do to a model's outputs, measured on samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes.errors import CalibrationError
from .dense import Arrays
from .exchange import Exchange, ExchangeableModel, exchangeable
from .sample_check import Sample
from .samples import Samples

Measure = Literal["kl", "relative_mse"]

COMPARED_TOKENS = 512
"""That distortion is measured on, more or less."""

_FEW = 8
"""Tokens, or images, below which samples that were calibrated on are taken too."""

_LOGITS_RANKS = (1, 2, 3)
"""Of one sample, of a batch, and of a batch of positions."""

_LOGITS = 2**17
"""Whose probabilities are held in float64 at once: 1 MiB for each step of the formula."""


@dataclass(frozen=True)
class Compared:
    """Samples that distortion is measured on.

    Attributes:
        held_out: that nothing was fitted on.
        calibrated: that fits were made on, so that they may lose less than others.
    """

    held_out: tuple[Sample, ...]
    calibrated: tuple[Sample, ...] = ()

    @property
    def all(self) -> tuple[Sample, ...]:
        """At least one."""
        return (*self.held_out, *self.calibrated)

    def counts(self) -> dict[str, int]:
        """A JSON object."""
        return {"held_out": len(self.held_out), "calibrated": len(self.calibrated)}

    def notes(self) -> list[str]:
        """What is to be said of samples that are too few."""
        if not self.calibrated:
            return []
        return [
            f"distortion is measured on {len(self.calibrated)} samples that were calibrated on and "
            f"{len(self.held_out)} that were held out; with more samples it would be of such alone"
        ]


class Distortion:
    """`D(Ŵ) = KL(p ‖ p̂)` of logits, else `Σ‖y − ŷ‖² / Σ‖y‖²`, for weights Ŵ in place of W.

    KL is the mean over positions, in nats.

    Attributes:
        samples: on which.
        measure: `kl` where an output is logits, `relative_mse` of all floating outputs otherwise.
        outputs: names of the outputs that are compared.
    """

    def __init__(self, model: ExchangeableModel, samples: Compared) -> None:
        self._model, self.samples = model, samples
        run = model.exchanged(())
        self._dense = [run(sample) for sample in samples.all]
        logits = [
            name
            for name in self._dense[0]
            if all(_are_logits(name, outputs[name]) for outputs in self._dense)
        ]
        floats = [name for name, y in self._dense[0].items() if y.dtype.kind == "f"]
        self.measure: Measure = "kl" if logits else "relative_mse"
        self.outputs = tuple(logits or floats)
        for outputs in self._dense:
            self._check(outputs)

    def of(self, exchanges: Iterable[tuple[str, Exchange]]) -> float:
        """D with these weights by the names of their sites, which are taken one at a time.

        Infinite if an output is then not finite where the dense model's is.
        """
        run = self._model.exchanged(exchanges)
        found, whole = 0.0, 0.0
        for sample, dense in zip(self.samples.all, self._dense, strict=True):
            outputs = run(sample)
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
            raise CalibrationError(
                "the model has no floating output to measure distortion at, which auto needs; name "
                "a scheme, or export the model with scores in place of labels"
            )
        for name in self.outputs:
            if np.isnan(outputs[name].astype(np.float32)).any():
                raise CalibrationError(
                    f"output {name!r} of the dense model is not a number for a calibration "
                    "sample; mend the model or the samples"
                )


@contextmanager
def distortion(model: ir.Model, names: Iterable[str], samples: Compared) -> Iterator[Distortion]:
    """Measures on `samples`, while this lasts.

    Args:
        model: the captured dense model; it is not changed.
        names: of the sites whose weights will be exchanged.
        samples: of `compared_on`.

    Raises:
        CalibrationError: the dense model gives no numbers for a sample.
        LoadError: ONNX Runtime cannot run the model.
    """
    with exchangeable(model, names) as exchanged:
        yield Distortion(exchanged, samples)


def compared_on(held_out: Sequence[Sample], calibrated: Iterable[Sample]) -> Compared:
    """As many of the samples as distortion is measured on; only those held out where they do.

    Few samples are calibrated on and held out at the same time: then they count as the former.
    """
    known = list(calibrated)
    ids = {id(sample) for sample in known}
    alone = [sample for sample in held_out if id(sample) not in ids]
    if _tokens(alone) >= _FEW:
        return Compared(tuple(_enough(alone)), ())
    both = _enough([*alone, *known])
    return Compared(tuple(both[: len(alone)]), tuple(both[len(alone) :]))


def _enough(samples: Iterable[Sample]) -> list[Sample]:
    found: list[Sample] = []
    for sample in samples:
        found.append(sample)
        if _tokens(found) >= COMPARED_TOKENS:
            break
    return found


def _tokens(samples: Sequence[Sample]) -> int:
    return Samples(tuple(samples)).tokens


def _are_logits(name: str, values: NDArray[np.generic]) -> bool:
    """Whether an output is named so, and its last axis may be one of classes.

    The softmax of a single score is 1 whatever the score, and pixels have their classes in front.
    """
    classes = values.ndim in _LOGITS_RANKS and values.shape[-1] > 1
    return "logits" in name.lower() and values.dtype.kind == "f" and classes


def _kl(dense: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """`Σ_positions Σ_i p_i (log p_i − log p̂_i)` over the last axis."""
    logits = dense.reshape(-1, dense.shape[-1])
    others = other.reshape(logits.shape)
    rows = max(_LOGITS // logits.shape[-1], 1)
    # Made once: fresh ones would cost more in page faults than the arithmetic takes.
    work = np.empty((3, rows, logits.shape[-1]))
    return sum(
        _kl_of_rows(logits[start : start + rows], others[start : start + rows], work)
        for start in range(0, len(logits), rows)
    )


def _kl_of_rows(
    dense: NDArray[np.generic], other: NDArray[np.generic], work: NDArray[np.float64]
) -> float:
    """`Σ_i p_i (y_i − ŷ_i) − log Z + log Ẑ` of each row, summed."""
    y, other_y, powers = work[:, : len(dense)]
    other_whole = _exponentials(other, other_y, powers)
    whole = _exponentials(dense, y, powers)
    with np.errstate(invalid="ignore"):  # both are minus infinity where nothing is expected
        np.subtract(y, other_y, out=y)
    y[powers == 0] = 0.0
    found = np.einsum("ij,ij->i", powers, y) / whole - np.log(whole) + np.log(other_whole)
    return float(np.maximum(found, 0).sum())


def _exponentials(
    logits: NDArray[np.generic], shifted: NDArray[np.float64], powers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Writes logits below their greatest, and their exponentials; returns the sums of these."""
    with np.errstate(invalid="ignore"):  # of weights that make infinities
        np.subtract(logits, logits.max(axis=-1, keepdims=True), out=shifted, dtype=np.float64)
    np.exp(shifted, out=powers)
    return np.asarray(powers.sum(axis=-1))
