"""`D(site, option) ≈ s · e²`: what sites do to the outputs, measured as far as the time allows.

The distortion of a model's outputs is of second order in the error of a layer's, so that one
measurement of a site tells how it grows with the relative error e of any other option of it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    Attributes:
        measure: the distortion of a choice.
        seconds: for all measurements together.
        seed: of what is measured first where not everything can be.
        clock: seconds that only grow.
        measured: distortions by site and scheme.
    """

    measure: Measure
    seconds: float
    seed: int = 0
    clock: Callable[[], float] = time.monotonic
    measured: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds
        self._reference: dict[str, float] = {}

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
            if self.time_is_up and self._reference:
                break
            self._measure_one(site)
            progress(number + 1, len(order), "measure")
        sites = tuple(self._predicted(site, model) for site in model.sites)
        return replace(model, sites=sites).with_distortions(self.measured)

    def refine(self, model: PricedModel, chosen: Sequence[int]) -> PricedModel:
        """The model with the distortions of the chosen options measured, as far as time allows."""
        for site, option in zip(model.sites, model.taken(chosen), strict=True):
            if self.time_is_up:
                break
            self._distortion(site, option)
        return model.with_distortions(self.measured)

    def check(self, model: PricedModel) -> dict[str, Any]:
        """Predictions beside measurements at random options, in part measured now.

        Returns:
            `pairs`, each with site, scheme, predicted and measured; `median_ratio` of measured
            over predicted and the quartiles of it, null without pairs.
        """
        options = [
            (site, option)
            for site in model.sites
            for option in site.options[1:]
            if self._reference.get(site.name) is not None and math.isfinite(option.error)
        ]
        random.Random(self.seed).shuffle(options)
        pairs: list[dict[str, Any]] = []
        for site, option in options:
            if len(pairs) == CHECKED or (
                self.time_is_up and (site.name, option.scheme) not in self.measured
            ):
                continue
            predicted = self._reference[site.name] * option.error**2
            known = self._distortion(site, option)
            if known == predicted or predicted == 0:
                continue  # it is what the prediction was made from
            pairs.append(
                {
                    "site": site.name,
                    "scheme": option.scheme,
                    "predicted": predicted,
                    "measured": known,
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
        """The option of middle error, in whose reach the others are."""
        options = sorted(
            (option for option in site.options[1:] if 0 < option.error < math.inf),
            key=lambda option: option.error,
        )
        if options:
            middle = options[len(options) // 2]
            self._reference[site.name] = self._distortion(site, middle) / middle.error**2

    def _distortion(self, site: PricedSite, option: Option) -> float:
        if option is site.dense:
            return 0.0
        key = site.name, option.scheme
        if key not in self.measured:
            self.measured[key] = self.measure({site.name: option.scheme})
        return self.measured[key]

    def _predicted(self, site: PricedSite, model: PricedModel) -> PricedSite:
        sensitivity = self._reference.get(site.name)
        if sensitivity is None:
            shape = site.out_features, site.in_features
            alike = (s.name for s in model.sites if (s.out_features, s.in_features) == shape)
            sensitivity = _mean(self._reference.get(name) for name in alike)
            if sensitivity is None:
                sensitivity = _mean(self._reference.values())
        options = tuple(
            replace(option, distortion=(sensitivity or 0.0) * option.error**2)
            for option in site.options[1:]
        )
        return replace(site, options=(site.dense, *options))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None
