"""What the benchmarks measure; each metric takes a plain callable, so any engine can be scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import pearsonr, spearmanr

from .data import DocumentPairs

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts to unit vectors, `[texts, width]`."""

Logits = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""ids `[batch, tokens]` to logits `[batch, tokens, classes]`."""

WINDOW = 512


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood in nats, and the number of predicted tokens."""

    value: float
    targets: int


@dataclass(frozen=True)
class Correlation:
    """Pearson's and Spearman's coefficients between a model's and human similarities."""

    pearson: float
    spearman: float


@dataclass(frozen=True)
class Fidelity:
    """How far a model's outputs are from those of the dense one.

    Attributes:
        top1_agreement: share of rows with the same largest logit.
        kl: mean KL(dense ‖ model) of the rows' softmax, in nats.
    """

    top1_agreement: float
    kl: float


def word_similarity(embed: Embed, pairs: Sequence[tuple[str, str, float]]) -> Correlation:
    """Correlation of cosine and human similarity over pairs of words (WordSim353)."""
    words = sorted({word for pair in pairs for word in pair[:2]})
    vectors = dict(zip(words, embed(words), strict=True))
    cosines = [float(vectors[first] @ vectors[second]) for first, second, _ in pairs]
    return _correlation(np.array(cosines), np.array([score for *_, score in pairs]))


def document_similarity(embed: Embed, pairs: DocumentPairs) -> Correlation:
    """Correlation of cosine and human similarity over all pairs of documents (Lee50)."""
    vectors = embed(pairs.documents)
    upper = np.triu_indices(len(pairs.documents), 1)
    return _correlation((vectors @ vectors.T)[upper], pairs.similarity[upper])


def perplexity(logits: Logits, ids: Sequence[int], window: int = WINDOW) -> Perplexity:
    """Perplexity over windows that do not overlap; each target is predicted inside its window.

    A window of T tokens gives T − 1 targets; what is left behind the last full window is dropped.
    """
    if len(ids) < window:
        raise ValueError(f"{len(ids)} tokens do not fill one window of {window}")
    total, targets = 0.0, 0
    for start in range(0, len(ids) - window + 1, window):
        row = np.array(ids[start : start + window], np.int64)
        logs = log_softmax(logits(row[None])[0, :-1].astype(np.float64), axis=-1)
        total -= float(logs[np.arange(window - 1), row[1:]].sum())
        targets += window - 1
    return Perplexity(math.exp(total / targets), targets)


def fidelity(model: NDArray[np.floating], dense: NDArray[np.floating]) -> Fidelity:
    """Agreement and divergence of two arrays of logits, `[..., classes]`."""
    logs_model = log_softmax(model.astype(np.float64), axis=-1)
    logs_dense = log_softmax(dense.astype(np.float64), axis=-1)
    agree = logs_model.argmax(axis=-1) == logs_dense.argmax(axis=-1)
    divergence = (np.exp(logs_dense) * (logs_dense - logs_model)).sum(axis=-1)
    return Fidelity(float(agree.mean()), float(divergence.mean()))


def _correlation(ours: NDArray[np.floating], human: NDArray[np.floating]) -> Correlation:
    return Correlation(
        float(pearsonr(ours, human).statistic), float(spearmanr(ours, human).statistic)
    )
