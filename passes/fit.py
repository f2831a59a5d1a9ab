"""Site × structure → factors: the fit, its error, and the tensors that are stored."""

from __future__ import annotations

from dataclasses import dataclass

from .linalg import relative_error
from .replace import Fitted
from .sites import Site
from .stats import Stats
from .structures.base import Form, Structure


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted site.

    Attributes:
        fitted: what `ReplaceDense` puts into the graph.
        relative_error: `sqrt(tr(E C Eᵀ) / tr(W C Wᵀ))` with statistics, `‖E‖ / ‖W‖` without,
            where `E = W − Ŵ`.
        bits_per_weight: stored bits over `out_features · in_features`.
    """

    fitted: Fitted
    relative_error: float
    bits_per_weight: float


def fit_site(
    site: Site, structure: Structure, stats: Stats | None, *, seed: int, form: Form
) -> FitResult:
    """Fits a resolved structure to the weight of a site.

    Raises:
        FitError: the weight has NaN or infinite entries, or the structure does not admit it.
    """
    weight = site.weight()
    factors = structure.fit(weight, stats, seed=seed, site=site.name)
    moment = None if stats is None else stats.second_moment
    error = relative_error(weight, structure.dense(factors), moment)
    tensors = structure.pack(factors, form)
    stored = 8 * sum(tensor.nbytes for tensor in tensors.values())
    return FitResult(Fitted(structure, tensors), error, stored / weight.size)
