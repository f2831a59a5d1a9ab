"""Reports of plans by measurement, made of priced models by the code that makes real ones."""

from __future__ import annotations

import json
from typing import Any

import pricing
from undense.passes.auto import choose, pareto, reason
from undense.passes.budget import Budget
from undense.passes.plan import Choice
from undense.passes.planning_report import costs, planning_report
from undense.passes.pricing import Option, PricedModel, PricedSite
from undense.passes.sensitivity import Sensitivities
from undense.passes.settle import Settled

BUDGET = Budget(size_ratio=0.25)


def measured(schemes: Any) -> float:
    """A distortion for any choice: more for more sites and shorter schemes."""
    return 1e-3 * sum(len(site) / len(scheme) for site, scheme in schemes.items())


def untimed() -> PricedModel:
    """Sites without times, as for a target that is not here."""
    dense = Option("dense", 4000, {}, 0.0, 0.0, True)
    coded = Option("int_codes{bits=8}", 1000, {}, 0.01, 0.1, False)
    return PricedModel((PricedSite("a", 40, 25, (dense, coded)),), 4000, {}, 0)


def planning_of(model: PricedModel, budget: Budget = BUDGET) -> dict[str, Any]:
    """What `planning` of `report.json` holds for a model, read back from JSON."""
    sensitivities = Sensitivities(measured, 100.0)
    model = sensitivities.priced(model)
    chosen = choose(model, budget)
    pairs = list(zip(model.sites, chosen, strict=True))
    taken = [(site, number, site.options[number].scheme) for site, number in pairs]
    choices = [
        Choice(site.name, site.in_features, site.out_features, scheme, reason(site, number, budget))
        for site, number, scheme in taken
    ]
    joint = measured({site.name: scheme for site, _, scheme in taken if scheme != "dense"})
    points = [
        {**costs(model, point), "distortion": 0.5**n}
        for n, point in enumerate(pareto(model, budget))
    ]
    planning = planning_report(
        Settled(model, chosen, joint, swaps=2),
        budget,
        choices,
        notes=["planned for size alone: <no> device"],
        measure="kl",
        samples={"held_out": 5, "calibrated": 3},
        prediction=sensitivities.check(model),
        pareto=points,
    )
    read: dict[str, Any] = json.loads(json.dumps(planning))
    return read


def report_of(planning: dict[str, Any]) -> dict[str, Any]:
    """A report of a compile by that plan."""
    return {
        "target": "llvm",
        "dtype": "float16",
        "sites": [
            {
                "name": site["name"],
                "in_features": pricing.SIDE,
                "out_features": pricing.SIDE,
                "users": 1,
                "scheme": site["scheme"],
                "bits_per_weight": 8 * site["bytes"]["chosen"] / pricing.SIDE**2,
                "relative_error": site["relative_error"],
                "reason": site["reason"],
            }
            for site in planning["sites"]
        ],
        "refusals": [{"name": "bias<1>", "reason": "no matrix"}],
        "bytes": {"before": 123_456, "after": 34_567, "code": 999},
        "operators": {
            "before": {"MatMul": 5, "Add": 2},
            "after": {"undense.X": 3, "MatMul": 2, "Add": 2},
        },
        "calibration": {"samples": 7, "tokens": 4096, "sha256": "abc"},
        "notes": ["a note"],
        "warnings": ["a <warning>"],
        "planning": planning,
    }
