"""What the report of a plan says of its sites, options and points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .plan import Choice
from .pricing import PricedModel


def costs(model: PricedModel, chosen: Sequence[int]) -> dict[str, Any]:
    """The ratios of one choice; batches are text, as they will be in JSON."""
    return {
        "size_ratio": model.size_ratio(chosen),
        "latency_ratio": {str(b): model.latency_ratio(chosen, b) for b in model.batches},
        "effective_bits": model.effective_bits(chosen),
    }


def site_costs(
    model: PricedModel, chosen: Sequence[int], choices: Iterable[Choice]
) -> list[dict[str, Any]]:
    """One row a site: what its choice costs, beside dense.

    Bytes and milliseconds have `dense` and `chosen`, the latter their ratio too, and whether the
    choice is slower; `distortion_measured` tells whether the
    distortion was measured, or else predicted from the error.
    """
    return [
        {
            "name": site.name,
            "scheme": option.scheme,
            "reason": choice.reason,
            "bytes": {"dense": site.dense.bytes, "chosen": option.bytes},
            "milliseconds": {
                str(batch): {
                    "dense": site.dense.milliseconds[batch],
                    "chosen": spent,
                    "ratio": site.time_ratio(option, batch),
                    "slower": site.is_slower(option, batch),
                }
                for batch, spent in option.milliseconds.items()
            },
            "relative_error": option.error,
            "distortion": option.distortion,
            "distortion_measured": option.measured,
        }
        for site, option, choice in zip(model.sites, model.taken(chosen), choices, strict=True)
    ]


def distortion_counts(model: PricedModel) -> Mapping[str, int]:
    """Of how many options the distortion was measured, and of how many predicted."""
    measured = [option.measured for site in model.sites for option in site.options[1:]]
    return {"measured": sum(measured), "predicted": len(measured) - sum(measured)}
