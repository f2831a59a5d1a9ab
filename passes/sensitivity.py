"""`D(site, option) ≈ s · e²`: what sites do to the outputs, measured as far as the time allows.

The distortion of a model's outputs is of second order in the error of a layer's, so that one
measurement of a site tells how it grows with the relative error e of any other option of it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, quantiles
from typing import Any

from .pricing import Option, PricedModel, PricedSite
from .progress import Progress, silent

Schemes = Mapping[str, str]
"""By the names of sites."""

Measure = Callable[[Schemes], float]
"""The distortion with these sites replaced so, and all others dense."""

CHECKED = 20
"""Pairs of site and option at which predictions are compared with measurements."""


@dataclass
class Sensitivities:
    """Measures distortions until the time is up, and predicts the others.

    What rounded activations add is predicted in any case: weights alone can be exchanged in the
    dense model.

    Attributes:
        measure: the distortion by the weights of a choice.
        seconds: for all measurements together.
        seed: of what is measured first where not everything can be.
        clock: seconds that only grow.
        measured: distortions by weights, by site and scheme of their fit.
    """

    measure: Measure
    seconds: float
    seed: int = 0
    clock: Callable[[], float] = time.monotonic
    measured: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds
        self._of_site: dict[str, float] = {}

    @property
    def time_is_up(self) -> bool:
        """Whether nothing more is to be measured."""
        return self.clock() >= self._end

    def priced(self, model: PricedModel, progress: Progress = silent) -> PricedModel:
        """The model with the distortion of every option, one of each site measured if time allows.

        A site that was not reached takes the mean sensitivity of those of its shape, or of all.
        """
        order = [site for site in model.sites if len(site.options) > 1]
        random.Random(self.seed).shuffle(order)
        for number, site in enumerate(order):
            if self.time_is_up and self._of_site:
                break
            progress(number, len(order), "measure")
            self._measure_one(site)
        progress(len(order), len(order), "measure")
        known = dict(self._of_site)
        for site in order:
            if site.name not in known:
                self._of_site[site.name] = _like(site, model, known)
        return self._updated(model)

    def refine(self, model: PricedModel, chosen: Sequence[int]) -> PricedModel:
        """The model with the distortions of the chosen options measured, as far as time allows."""
        for site, option in zip(model.sites, model.taken(chosen), strict=True):
            if self.time_is_up:
                break
            self._by_weights(site, option)
        return self._updated(model)

    def joint(self, model: PricedModel, chosen: Sequence[int]) -> float:
        """The distortion with all chosen options in place at once."""
        pairs = [
            (site, option)
            for site, option in zip(model.sites, model.taken(chosen), strict=True)
            if option is not site.dense
        ]
        if not pairs:
            return 0.0
        by_weights = self.measure({site.name: option.fit for site, option in pairs})
        return by_weights + sum(self._by_rounding(site, option) for site, option in pairs)

    def check(self, model: PricedModel) -> dict[str, Any]:
        """Predictions beside measurements at random options, in part measured now.

        Returns:
            `pairs`, each with site, scheme, predicted and measured; `median_ratio` of measured
            over predicted and the quartiles of it, null without pairs.
        """
        options = {
            (site.name, option.fit): (site, option)
            for site in model.sites
            for option in site.options[1:]
            if math.isfinite(option.error)
        }
        order = list(options.values())
        random.Random(self.seed).shuffle(order)
        pairs: list[dict[str, Any]] = []
        for site, option in order:
            known = (site.name, option.fit) in self.measured
            if len(pairs) == CHECKED or (self.time_is_up and not known):
                continue
            predicted = self._of_site[site.name] * option.error**2
            measured = self._by_weights(site, option)
            if measured == predicted or predicted == 0:
                continue  # it is what the prediction was made from
            pairs.append(
                {
                    "site": site.name,
                    "scheme": option.fit,
                    "predicted": predicted,
                    "measured": measured,
                }
            )
        ratios = [pair["measured"] / pair["predicted"] for pair in pairs]
        spread = quantiles(ratios, n=4) if len(ratios) > 1 else [None, None, None]
        return {
            "pairs": pairs,
            "p25_ratio": spread[0],
            "median_ratio": spread[1],
            "p75_ratio": spread[2],
        }

    def _measure_one(self, site: PricedSite) -> None:
        """The option of middle error, in whose reach the others are.

        Where it makes outputs that are not finite, the ones of less error are measured instead.
        """
        options = sorted(
            (option for option in site.options[1:] if 0 < option.error < math.inf),
            key=lambda option: option.error,
        )
        for option in options[len(options) // 2 :: -1]:
            found = self._by_weights(site, option)
            self._of_site[site.name] = found / option.error**2
            if math.isfinite(found):
                break

    def _by_weights(self, site: PricedSite, option: Option) -> float:
        if option is site.dense:
            return 0.0
        key = site.name, option.fit
        if key not in self.measured:
            self.measured[key] = self.measure({site.name: option.fit})
        return self.measured[key]

    def _by_rounding(self, site: PricedSite, option: Option) -> float:
        return _grown(self._of_site.get(site.name, 0.0), option.rounding)

    def _updated(self, model: PricedModel) -> PricedModel:
        """With what is known by now."""

        def updated(site: PricedSite, option: Option) -> Option:
            found = self.measured.get((site.name, option.fit))
            predicted = _grown(self._of_site.get(site.name, 0.0), option.error)
            distortion = predicted if found is None else found
            distortion += self._by_rounding(site, option)
            return replace(option, distortion=distortion, measured=found is not None)

        sites = (
            replace(site, options=(site.dense, *(updated(site, o) for o in site.options[1:])))
            for site in model.sites
        )
        return replace(model, sites=tuple(sites))


def _grown(sensitivity: float, error: float) -> float:
    """`s · e²`, where either may be infinite."""
    if error == 0 or math.isinf(error):
        return error
    return sensitivity * error**2


def _like(site: PricedSite, model: PricedModel, known: Mapping[str, float]) -> float:
    """The mean sensitivity of the sites of a shape, or of all."""
    shape = site.out_features, site.in_features
    alike = {s.name for s in model.sites if (s.out_features, s.in_features) == shape}
    finite = {name: value for name, value in known.items() if math.isfinite(value)}
    found = [value for name, value in finite.items() if name in alike] or list(finite.values())
    return fmean(found) if found else 0.0
