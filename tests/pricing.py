"""Priced models to plan with: sites of one shape whose options follow a rate-distortion line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from undense.passes.pricing import Option, PricedModel, PricedSite

BITS = {"int_codes{bits=8}": 8, "int_codes{bits=4}": 4, "trit_planes{planes=1}": 2}
SIDE = 64


def site(
    name: str,
    sensitivity: float = 1.0,
    *,
    slow: Mapping[str, float] | None = None,
    fixed: int | None = None,
) -> PricedSite:
    """Dense, 8, 4 and 2 bits; times are those of the bytes, or `slow` times dense by scheme."""
    dense = 4 * SIDE * SIDE
    options = [Option("dense", dense, {1: 1.0, 32: 4.0}, 0.0, 0.0, measured=True)]
    for scheme, bits in BITS.items():
        ratio = (slow or {}).get(scheme, bits / 32)
        error = 2.0**-bits
        options.append(
            Option(
                scheme,
                dense * bits // 32,
                {1: ratio, 32: 4 * ratio},
                error,
                sensitivity * error**2,
                measured=False,
            )
        )
    return PricedSite(name, SIDE, SIDE, tuple(options), fixed)


def model(*sites: PricedSite, other_bytes: int = 0, rest: float | None = None) -> PricedModel:
    """A model of these sites, with weights that are no sites, and time that is no site's."""
    weights = sum(site.dense.bytes for site in sites) + other_bytes
    return PricedModel(sites, weights, {} if rest is None else {1: rest, 32: rest}, other_bytes)


def schemes(model: PricedModel, chosen: Sequence[int]) -> list[str]:
    """What was chosen, by its text."""
    return [option.scheme for option in model.taken(chosen)]
