"""A plan made by measurement as text: what it costs, how sure that is, and what else there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .table import percent, print_rows, text

Planning = Mapping[str, Any]
"""`planning` of a report."""

OTHER_POINTS = "other plans for this model; undense plan --point N takes one of them"
_MEASURES = {
    "kl": "KL divergence of the logits, nats",
    "relative_mse": "relative mean squared error of the outputs",
}


def print_plan(planning: Planning) -> None:
    """Prints what became of each site, then what `print_planning` prints."""
    print_rows(site_headings(planning), site_rows(planning))
    for site in planning["sites"]:
        if site["scheme"] == "dense":
            print(f"{site['name']}: {site['reason']}")
    print()
    print_planning(planning)


def print_planning(planning: Planning, report: Mapping[str, Any] | None = None) -> None:
    """Prints the predicted costs, the points of the Pareto table, and counts of schemes.

    Args:
        planning: as in a report.
        report: of a compile, to set what its artifact costs beside the predictions.
    """
    print_rows(("", ""), list(plan_facts(planning, report or {})))
    print(f"\n{OTHER_POINTS}:")
    print_rows(point_headings(planning), point_rows(planning))
    print()
    print_rows(("sites", "scheme"), scheme_rows(planning))
    for note in planning["notes"]:
        print(f"note: {note}")


def plan_facts(planning: Planning, report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was planned and how well it was predicted, each under its name.

    Args:
        planning: as in a report.
        report: of the compile; empty if there was none.
    """
    sizes = report.get("bytes")
    size = f"{planning['size_ratio']:.1%} of dense predicted"
    if sizes and sizes.get("after") is not None and sizes["before"]:
        size += f", {sizes['after'] / sizes['before']:.1%} as written"
    yield "budget", planning["budget"]
    yield "bytes of weights", size
    yield "time of a run", _latencies(planning, report.get("latency") or {})
    yield "stored bits", f"{text(planning['effective_bits'])} a weight"
    yield "distortion", f"{text(planning['distortion'])}, {measure(planning)}"
    if planning["additivity"] is not None:
        ratio = f"{planning['additivity']:.3g}"
        yield "additivity", f"{ratio} times the sum of what each site loses alone"
    if planning["swaps"]:
        yield "swaps", f"{planning['swaps']} pairs of sites, because that sum misled"
    counts = planning["distortions"]
    yield (
        "options",
        f"{sum(counts.values())}; distortion of {counts['measured']} measured, others predicted",
    )
    if samples := planning.get("distortion_samples"):
        known = (
            f", {samples['calibrated']} that were calibrated on" if samples["calibrated"] else ""
        )
        yield "compared on", f"{samples['held_out']} samples that were held out{known}"
    yield "prediction", _prediction(planning["prediction"])


def measure(planning: Planning) -> str:
    """What distortion is the distortion of."""
    return _MEASURES[planning["distortion_measure"]]


def _latencies(planning: Planning, latency: Mapping[str, Any]) -> str:
    ratios = planning["latency_ratio"].items()
    if not ratios:
        return "not measured"
    return ", ".join(
        f"{times(ratio)} of dense at batch {batch} {_how(batch, latency)}"
        for batch, ratio in ratios
    )


def _how(batch: str, latency: Mapping[str, Any]) -> str:
    if batch not in latency:
        return "predicted"
    return f"predicted, {times(latency[batch]['ratio'])} measured"


def _prediction(found: Mapping[str, Any]) -> str:
    pairs = len(found["pairs"])
    if found["median_ratio"] is None:
        return "not compared with measurements"
    return (
        f"measured over predicted distortion: median {found['median_ratio']:.3g}, quartiles "
        f"{_ratio(found['p25_ratio'])} and {_ratio(found['p75_ratio'])}, at {pairs} options"
    )


def _ratio(found: float | None) -> str:
    """JSON has no number for what is not finite."""
    return "none" if found is None else f"{found:.3g}"


def point_headings(planning: Planning) -> list[str]:
    """Of `point_rows`."""
    batches = (f"time at batch {batch}" for batch in planning["batches"])
    return ["point", "bytes", *batches, "bits/weight", "distortion"]


def point_rows(planning: Planning) -> list[list[str]]:
    """The points of the Pareto table from 1, as `plan` takes their numbers."""
    return [
        [
            str(number),
            f"{point['size_ratio']:.1%}",
            *(times(point["latency_ratio"][str(batch)]) for batch in planning["batches"]),
            text(point["effective_bits"]),
            text(point["distortion"]),
        ]
        for number, point in enumerate(planning["pareto"], 1)
    ]


def site_headings(planning: Planning) -> list[str]:
    """Of `site_rows`."""
    batches = (f"time at batch {batch}" for batch in planning["batches"])
    return ["site", "scheme", "bytes", *batches, "error", "distortion"]


def site_rows(planning: Planning) -> list[list[str]]:
    """One row a site: what its choice costs, with ratios to dense."""
    return [
        [
            site["name"],
            site["scheme"],
            percent(site["bytes"]["chosen"] / max(site["bytes"]["dense"], 1)),
            *(times(spent["ratio"]) for spent in site["milliseconds"].values()),
            percent(site["relative_error"]),
            text(site["distortion"]) + _source(site),
        ]
        for site in planning["sites"]
    ]


def scheme_rows(planning: Planning) -> list[list[str]]:
    """How many sites have each scheme, the most frequent first."""
    counts = Counter(site["scheme"] for site in planning["sites"])
    return [[str(count), scheme] for scheme, count in counts.most_common()]


def times(ratio: float) -> str:
    """`0.42×`."""
    return f"{ratio:.2f}×"


def _source(site: Mapping[str, Any]) -> str:
    return " measured" if site["distortion_measured"] else " predicted"
