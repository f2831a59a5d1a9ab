"""What the report of a plan says of its sites, options and points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .auto import runners_up
from .budget import Budget
from .plan import Choice
from .pricing import PricedModel

if TYPE_CHECKING:
    from .settle import Settled


def planning_report(
    settled: Settled,
    budget: Budget,
    choices: Sequence[Choice],
    *,
    notes: Sequence[str],
    measure: str,
    samples: Mapping[str, int],
    prediction: Mapping[str, Any],
    pareto: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The part `planning` of the report.

    Args:
        settled: the choice, with its prices.
        budget: that it keeps.
        choices: with their reasons.
        notes: sentences.
        measure: of distortion: `kl` or `relative_mse`.
        samples: how many it was measured on, `held_out` and `calibrated`.
        prediction: beside measurements.
        pareto: rows of the table.
    """
    model = settled.model
    return {
        "budget": str(budget),
        "notes": list(notes),
        "batches": list(model.batches),
        "rest_milliseconds": {str(b): ms for b, ms in model.rest_milliseconds.items()},
        "distortion_measure": measure,
        "distortion_samples": dict(samples),
        "distortions": distortion_counts(model),
        "swaps": settled.swaps,
        "prediction": dict(prediction),
        "pareto": list(pareto),
        **chosen_report(settled, budget, choices),
    }


def chosen_report(settled: Settled, budget: Budget, choices: Sequence[Choice]) -> dict[str, Any]:
    """What follows from the choice, with the reasons of each site."""
    model, chosen = settled.model, settled.chosen
    return {
        **costs(model, chosen),
        "distortion": settled.joint,
        "additivity": settled.additivity,
        "sites": site_costs(model, chosen, choices),
        "runners_up": {
            site.name: runners_up(site, number, budget)
            for site, number in zip(model.sites, chosen, strict=True)
        },
    }


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
