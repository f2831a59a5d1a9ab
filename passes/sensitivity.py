"""`D(site, option) ≈ s · e² + t · r²`: what sites do to the outputs, measured as time allows.

The distortion of a model's outputs is of second order in the error of a layer's, so that one
measurement of a site tells how it grows with the relative error e of the weights of any other
option of it, and another how it grows with the error r of rounded activations.
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

Change = str | int
"""Of a site: a scheme, or the columns of x that are rounded with one scale before dense weights."""

Measure = Callable[[Mapping[str, Change]], float]
"""The distortion with these sites changed, by their names, and all others dense."""

CHECKED = 20
"""Pairs of site and option at which predictions are compared with measurements."""
_CHECK = 0.1
"""Share of the time that is kept for these."""
_ROUNDING = 0.5
"""Share of the time after which no site's rounding alone is measured any more."""
_JOINT = 16
"""Choices that are measured as a whole, more or less."""


@dataclass
class Sensitivities:
    """Measures distortions until the time is up, and predicts the others.

    Attributes:
        measure: the distortion of a change.
        seconds: for all measurements together.
        seed: of what is measured first where not everything can be.
        progress: is told of measurements, of which there are never more to come than it is told.
        clock: seconds that only grow.
        measured: distortions by site and change.
    """

    measure: Measure
    seconds: float
    seed: int = 0
    progress: Progress = silent
    clock: Callable[[], float] = time.monotonic
    measured: dict[tuple[str, Change], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = self.clock()
        self._of_weights: dict[str, float] = {}
        self._of_rounding: dict[str, float] = {}
        self._references: set[tuple[str, Change]] = set()
        self._done, self._expected = 0, 1

    @property
    def time_is_up(self) -> bool:
        """Whether nothing more is to be measured, but what predictions are compared with."""
        return self._used(1 - _CHECK)

    def priced(self, model: PricedModel) -> PricedModel:
        """The model with the distortion of every option, one of each site measured if time allows.

        A site that was not reached takes the mean sensitivity of those of its shape, or of all.
        """
        order = [site for site in model.sites if len(site.options) > 1]
        random.Random(self.seed).shuffle(order)
        rounded = [site for site in order if _rounded(site)]
        self._expected = 2 * len(order) + len(rounded) + CHECKED + _JOINT
        for site in order:
            if self.time_is_up and self._of_weights:
                break
            self._measure_weights(site)
        _fill(self._of_weights, order)
        for site in rounded:
            if self._used(_ROUNDING) and self._of_rounding:
                break
            self._measure_rounding(site)
        # Rounding does to all sites alike more or less than weights of the same error.
        ratios = [
            found / self._of_weights[name]
            for name, found in self._of_rounding.items()
            if 0 < self._of_weights[name] < math.inf and math.isfinite(found)
        ]
        for site in rounded:
            usual = self._of_weights[site.name] * (fmean(ratios) if ratios else 1.0)
            self._of_rounding.setdefault(site.name, usual)
        return self._updated(model)

    def refine(self, model: PricedModel, chosen: Sequence[int]) -> PricedModel:
        """The model with the distortions of the chosen options measured, as far as time allows."""
        for site, option in zip(model.sites, model.taken(chosen), strict=True):
            if self.time_is_up:
                break
            self._alone(site, option)
        return self._updated(model)

    def joint(self, model: PricedModel, chosen: Sequence[int]) -> float:
        """The distortion with all chosen options in place at once."""
        changes: dict[str, Change] = {
            site.name: option.scheme
            for site, option in zip(model.sites, model.taken(chosen), strict=True)
            if option is not site.dense
        }
        return self._now(changes) if changes else 0.0

    def check(self, model: PricedModel) -> dict[str, Any]:
        """Predictions beside measurements at random options, in part measured now.

        Those that predictions were made from are left out.

        Returns:
            `pairs`, each with site, scheme, predicted and measured; `median_ratio` of measured
            over predicted and the quartiles of it, null without pairs.
        """
        order = [
            (site, option)
            for site in model.sites
            for option in site.options[1:]
            if math.isfinite(option.error) and (site.name, option.fit) not in self._references
        ]
        random.Random(self.seed).shuffle(order)
        pairs: list[dict[str, Any]] = []
        for site, option in order:
            known = (site.name, option.scheme) in self.measured
            if len(pairs) == CHECKED or (self._used(1.0) and not known):
                continue
            predicted = self._predicted(site, option)
            if predicted == 0:
                continue
            pairs.append(
                {
                    "site": site.name,
                    "scheme": option.scheme,
                    "predicted": predicted,
                    "measured": self._alone(site, option),
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

    def finish(self) -> None:
        """Tells that nothing more will be measured."""
        self.progress(max(self._done, 1), max(self._done, 1), "measure")

    def _measure_weights(self, site: PricedSite) -> None:
        """By the option of middle error, in whose reach the others are.

        Where it makes outputs that are not finite, the ones of less error are measured instead.
        """
        options = sorted(
            (option for option in site.options[1:] if 0 < option.error < math.inf),
            key=lambda option: option.error,
        )
        for option in options[len(options) // 2 :: -1]:
            found = self._of_change(site, option.fit)
            self._of_weights[site.name] = found / option.error**2
            self._references.add((site.name, option.fit))
            if math.isfinite(found):
                break

    def _measure_rounding(self, site: PricedSite) -> None:
        """By the option that rounds the most, which is told best."""
        option = max(_rounded(site), key=lambda option: option.rounding)
        assert option.block is not None
        found = self._of_change(site, option.block)
        self._of_rounding[site.name] = found / option.rounding**2

    def _alone(self, site: PricedSite, option: Option) -> float:
        return 0.0 if option is site.dense else self._of_change(site, option.scheme)

    def _of_change(self, site: PricedSite, change: Change) -> float:
        key = site.name, change
        if key not in self.measured:
            self.measured[key] = self._now({site.name: change})
        return self.measured[key]

    def _now(self, changes: Mapping[str, Change]) -> float:
        self._tell()
        found = self.measure(changes)
        self._done += 1
        return found

    def _tell(self) -> None:
        """So many are done, of those that are expected and that there is time for."""
        spent = self.clock() - self._start
        fit = self._done + max(self.seconds - spent, 0.0) * self._done / max(spent, 1e-9)
        total = min(self._expected, fit) if self._done else self._expected
        self.progress(self._done, max(math.ceil(total), self._done + 1), "measure")

    def _used(self, share: float) -> bool:
        """Whether that share of the time is over."""
        return self.clock() - self._start >= share * self.seconds

    def _predicted(self, site: PricedSite, option: Option) -> float:
        by_weights = _grown(self._of_weights.get(site.name, 0.0), option.error)
        return by_weights + self._by_rounding(site, option)

    def _by_rounding(self, site: PricedSite, option: Option) -> float:
        return _grown(self._of_rounding.get(site.name, 0.0), option.rounding)

    def _updated(self, model: PricedModel) -> PricedModel:
        """With what is known by now."""

        def updated(site: PricedSite, option: Option) -> Option:
            found = self.measured.get((site.name, option.scheme))
            if found is not None:
                return replace(option, distortion=found, measured=True)
            weights = self.measured.get((site.name, option.fit))
            if weights is None:
                return replace(option, distortion=self._predicted(site, option), measured=False)
            distortion = weights + self._by_rounding(site, option)
            return replace(option, distortion=distortion, measured=False)

        sites = (
            replace(site, options=(site.dense, *(updated(site, o) for o in site.options[1:])))
            for site in model.sites
        )
        return replace(model, sites=tuple(sites))


def _rounded(site: PricedSite) -> list[Option]:
    """The options of a site by which rounding changes something."""
    return [option for option in site.options[1:] if option.block and option.rounding > 0]


def _grown(sensitivity: float, error: float) -> float:
    """`s · e²`, where either may be infinite."""
    if error == 0 or math.isinf(error):
        return error
    return sensitivity * error**2


def _fill(found: dict[str, float], sites: Sequence[PricedSite]) -> None:
    """Gives sites that have none the mean sensitivity of those of their shape, or of all."""
    finite = {site.name: found[site.name] for site in sites if _finite(found.get(site.name))}
    by_shape: dict[tuple[int, int], list[float]] = {}
    for site in sites:
        if site.name in finite:
            shape = site.out_features, site.in_features
            by_shape.setdefault(shape, []).append(finite[site.name])
    usual = fmean(finite.values()) if finite else 0.0
    for site in sites:
        alike = by_shape.get((site.out_features, site.in_features))
        found.setdefault(site.name, fmean(alike) if alike else usual)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
