"""What each option of each site costs: bytes, milliseconds, and distortion of the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .budget import Budget

Batch = int
"""Product of the lengths of the dynamic dimensions of one call: tokens, or samples."""

SAME_TIME = 1.02
"""Times nearer than this are the same: medians repeat within one or two percent."""

RESOLUTION_MS = 0.001
"""What a call with nothing in it varies by; a gather of a few rows can be measured as nothing."""


_LITTLE = 10
"""Times that an option may take of dense, beyond which their ratio says nothing: of a lookup."""


@dataclass(frozen=True)
class Option:
    """One form of one site.

    Attributes:
        scheme: resolved scheme text, or `dense`.
        bytes: that are stored.
        milliseconds: of one run's calls, at each batch; empty where nothing was timed.
        error: relative error of the site's outputs on the calibration data, by its weights.
        distortion: of the model's outputs with this site alone replaced.
        measured: whether that was measured, or else predicted from the errors in whole or in part.
        rounding: relative error of the site's outputs where activations are rounded to int8.
        block: columns of x that are rounded with one scale; None where x is taken as it is.
        weights: scheme of the fit whose weights it has; its own if empty.
    """

    scheme: str
    bytes: int
    milliseconds: Mapping[Batch, float]
    error: float
    distortion: float
    measured: bool
    rounding: float = 0.0
    block: int | None = None
    weights: str = ""

    @property
    def fit(self) -> str:
        """The scheme that its weights were fitted for."""
        return self.weights or self.scheme


@dataclass(frozen=True)
class PricedSite:
    """A site and its options.

    Attributes:
        name, in_features, out_features: as in `Site`.
        options: the dense one first.
        fixed: the number of the one that was asked for by name; None if any may be chosen.
        slack: milliseconds by which an option may be slower at each batch, since a run does not
            show them.
    """

    name: str
    in_features: int
    out_features: int
    options: tuple[Option, ...]
    fixed: int | None = None
    slack: Mapping[Batch, float] = field(default_factory=dict)

    @property
    def dense(self) -> Option:
        """The weight as it is."""
        return self.options[0]

    @property
    def weights(self) -> int:
        """Elements of the dense matrix."""
        return self.in_features * self.out_features

    def gate(self, option: Option, budget: Budget) -> str:
        """Why an option may not be chosen whatever its distortion; empty if it may.

        It must be smaller than dense, but for latency alone, and not slower at any batch, but for
        size alone.
        """
        if option is self.dense:
            return ""
        if budget.wants_size and option.bytes >= self.dense.bytes:
            return f"would take {option.bytes / self.dense.bytes:.2f}× the bytes"
        if not budget.wants_latency:
            return ""
        slower = (batch for batch in option.milliseconds if self.is_slower(option, batch))
        batch = next(slower, None)
        return "" if batch is None else f"would take {self.times_dense(option, batch)}"

    def is_slower(self, option: Option, batch: Batch) -> bool:
        """Whether an option takes longer than the dense form, by more than can be measured."""
        dense = self.dense.milliseconds[batch]
        slack = max(RESOLUTION_MS, self.slack.get(batch, 0.0))
        return option.milliseconds[batch] > SAME_TIME * dense + slack

    def time_ratio(self, option: Option, batch: Batch) -> float:
        """The time of an option over that of the dense form; both are at least what can be told."""
        taken, dense = (
            max(found.milliseconds[batch], RESOLUTION_MS) for found in (option, self.dense)
        )
        return taken / dense

    def times_dense(self, option: Option, batch: Batch) -> str:
        """`1.30× the time at batch 1`; `0.027 ms at batch 1` where dense takes next to nothing."""
        taken, dense = option.milliseconds[batch], self.dense.milliseconds[batch]
        if dense < RESOLUTION_MS or taken > _LITTLE * dense:
            return f"{taken:.2g} ms at batch {batch}"
        return f"{self.time_ratio(option, batch):.2f}× the time at batch {batch}"


@dataclass(frozen=True)
class PricedModel:
    """A model's options, and what no plan changes.

    Attributes:
        sites: with their options.
        bytes: of all weights of the model as it was given, which size ratios are of.
        rest_milliseconds: of a dense run on the target without its sites, at each batch. Empty
            where the dense model was not timed; the latency is that of the sites alone then.
        rest_bytes: of weights that are no sites, as they will be stored: in another type perhaps
            than they were given in.
    """

    sites: tuple[PricedSite, ...]
    bytes: int
    rest_milliseconds: Mapping[Batch, float]
    rest_bytes: int

    @classmethod
    def of(
        cls,
        sites: Sequence[PricedSite],
        bytes: int,
        rest_milliseconds: Mapping[Batch, float],
        rest_bytes: int,
    ) -> PricedModel:
        """The model of these sites, each with its share of the time that a run does not show.

        Shares are those of the bytes: an embedding that is half of a model, and of whose rows a run
        looks up a few, may take some microseconds more for being small.
        """
        whole = sum(site.dense.bytes for site in sites)
        model = cls(tuple(sites), bytes, rest_milliseconds, rest_bytes)
        runs = {batch: model.dense_run(batch) for batch in model.batches}
        priced = (
            replace(
                site,
                slack={
                    batch: (SAME_TIME - 1) * run * site.dense.bytes / whole
                    for batch, run in runs.items()
                },
            )
            for site in sites
        )
        return replace(model, sites=tuple(priced))

    @property
    def batches(self) -> tuple[Batch, ...]:
        """At which the sites were timed."""
        return tuple(self.sites[0].dense.milliseconds) if self.sites else ()

    def taken(self, chosen: Sequence[int]) -> list[Option]:
        """The chosen option of each site."""
        return [site.options[number] for site, number in zip(self.sites, chosen, strict=True)]

    def size_ratio(self, chosen: Sequence[int]) -> float:
        """Bytes of all weights after over before."""
        after = self.rest_bytes + sum(option.bytes for option in self.taken(chosen))
        return after / self.bytes if self.bytes else 1.0

    def dense_run(self, batch: Batch) -> float:
        """Milliseconds of a run with all sites dense."""
        sites = sum(site.dense.milliseconds[batch] for site in self.sites)
        return self.rest_milliseconds.get(batch, 0.0) + sites

    def latency_ratio(self, chosen: Sequence[int], batch: Batch) -> float:
        """Time of a run after over before."""
        rest, before = self.rest_milliseconds.get(batch, 0.0), self.dense_run(batch)
        after = rest + sum(option.milliseconds[batch] for option in self.taken(chosen))
        return after / before if before else 1.0

    def effective_bits(self, chosen: Sequence[int]) -> float:
        """Stored bits of all sites over their number of weights."""
        bits = sum(8 * option.bytes for option in self.taken(chosen))
        return bits / max(sum(site.weights for site in self.sites), 1)

    def distortion(self, chosen: Sequence[int]) -> float:
        """The sum of what each site does alone."""
        return sum(option.distortion for option in self.taken(chosen))
