"""The report of a compile: a table for the terminal, JSON, and one page of HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .artifact import REPORT, REPORT_HTML, Artifact
from .plan_report import print_planning
from .report_html import report_html
from .table import percent, print_rows, text

HEADINGS = ("site", "in", "out", "users", "scheme", "bits/weight", "error", "reason")
VERIFY_HEADINGS = ("output", "execution error", "tolerance", "approximation error", "holds")
TUNING_HEADINGS = (
    "kernel", "shape", "rows", "tried", "rule, µs", "best, µs", "speed-up", "spread", "chosen",
)  # fmt: skip
EXPORT_HEADINGS = ("kernel", "shape", "rows", "candidates", "left out")
FUNCTION_HEADINGS = ("function", "tried", "rule, µs", "best, µs", "speed-up", "spread", "chosen")
PROFILE_HEADINGS = ("function", "calls", "ms a run", "share", "shapes")
_VERIFY_KEYS = ("execution_error", "tolerance", "approximation_error", "holds")
_MOST = 12
"""Outputs that are printed; a decoder with its cache has dozens."""
_KEYS = ("name", "in_features", "out_features", "users", "scheme", "bits_per_weight")


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes `report.json` and `report.html` into `folder`."""
    document = _finite(report)
    (folder / REPORT).write_text(report_json(document), encoding="utf-8")
    (folder / REPORT_HTML).write_text(
        report_html(document, HEADINGS, site_rows(document), summary(document)), encoding="utf-8"
    )


def read_report(artifact: Artifact) -> dict[str, Any]:
    """The report that was written with an artifact."""
    report: dict[str, Any] = json.loads(artifact.file(REPORT).read_text(encoding="utf-8"))
    return report


def report_json(report: Mapping[str, Any]) -> str:
    """Indented JSON with every digit of every number; what is not finite becomes null."""
    return json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"


def print_report(report: Mapping[str, Any]) -> None:
    """Prints the sites as a table, the refusals, how they were planned, sizes and warnings."""
    if report["sites"]:
        print_rows(HEADINGS, site_rows(report))
    for refusal in report["refusals"]:
        print(f"not replaced: {refusal['name']}: {refusal['reason']}")
    if report.get("planning"):
        print()
        print_planning(report["planning"], report)
        print()
    for line in summary(report):
        print(line)


def print_verification(found: Mapping[str, Any]) -> None:
    """Prints the errors of each output, nearest to its tolerance first, then the verdict."""
    outputs = sorted(found["outputs"].items(), key=lambda item: -_nearness(item[1]))
    print_rows(
        VERIFY_HEADINGS,
        [[name, *(text(errors[key]) for key in _VERIFY_KEYS)] for name, errors in outputs[:_MOST]],
    )
    if len(outputs) > _MOST:
        print(f"and {len(outputs) - _MOST} outputs that are farther from their tolerance")
    if "fresh_approximation_error" in found:
        print(f"on fresh samples, against dense: {text(found['fresh_approximation_error'])}")
    verdict = "holds" if found["holds"] else "does not hold"
    print(f"{verdict}: {found['engine']}, stored samples: {found['samples']}")


def _nearness(errors: Mapping[str, Any]) -> float:
    error = errors["execution_error"]
    return math.inf if error is None else float(error) / max(errors["tolerance"], 1e-300)


def print_profile(found: Mapping[str, Any]) -> None:
    """Prints the functions that a run calls, the longest first, then what their sum leaves out."""
    print_rows(
        PROFILE_HEADINGS,
        [
            [
                function["name"],
                f"{function['calls']:g}",
                text(function["ms"]),
                f"{function['share']:.1%}",
                function["workload"],
            ]
            for function in found["functions"]
        ],
    )
    if found["engine"] == "tvm":
        print(f"the virtual machine's own builtins: {found['builtin_share']:.1%}")
    print(
        f"a run: {text(found['run_ms'])} ms, {text(found['traced_ms'])} ms while it is looked "
        f"into; {found['engine']}, {found['threads']} threads"
    )


def print_tuning(found: Mapping[str, Any]) -> None:
    """Prints what was measured of each kernel, then what became of it."""
    if found["results"]:
        print_rows(TUNING_HEADINGS, [_tuning_row(result) for result in found["results"]])
    for result in found["results"]:
        if result["wrong"]:
            print(
                f"dropped for wrong outputs: {result['wrong']} candidates of {result['kind']} "
                f"{_shape(result)} for {result['rows']} rows"
            )
    for result in found["functions"]:
        if result["wrong"]:
            print(f"dropped for wrong outputs: {result['wrong']} traces of {result['name']}")
    if found["functions"]:
        print_rows(FUNCTION_HEADINGS, [_function_row(result) for result in found["functions"]])
    for kernel in found["untunable"]:
        print(f"no tilings to try: {kernel['kind']} {_shape(kernel)}")
    for function in found["unsearchable"]:
        print(f"no schedule to try: {function['name']}: {function['reason']}")
    print(f"database: {found['database']}")
    for line in _code(found):
        print(line)
    if not found["rebuilt"]:
        print("the artifact already holds these tilings")
    elif found["holds"] is not None:
        print(f"the artifact was built again and {'holds' if found['holds'] else 'does not hold'}")
    else:
        print("the artifact was built again, and not verified: this machine cannot run it")


def print_exported(found: Mapping[str, Any]) -> None:
    """Prints how many candidates each kernel has, then what to do with the folder."""
    print_rows(
        EXPORT_HEADINGS,
        [
            [kernel["kind"], _shape(kernel)]
            + [str(kernel[name]) for name in ("rows", "candidates", "left_out")]
            for kernel in found["kernels"]
        ],
    )
    print(f"copy {found['folder']} to a machine with a GPU and torch, and run there:")
    print(f"  {found['command']}")
    print(f"then here: undense tune OUT --merge {found['folder']}/results.json")


def _tuning_row(result: Mapping[str, Any]) -> list[str]:
    fields = ", ".join(f"{name}={text(value)}" for name, value in result["fields"].items())
    numbers = (result["default_us"], result["median_us"], result["speedup"], result["spread"])
    return [
        result["kind"],
        _shape(result),
        *map(str, (result["rows"], result["tried"])),
        *map(text, numbers),
        fields or "the rule's own",
    ]


def _function_row(result: Mapping[str, Any]) -> list[str]:
    numbers = (result["default_us"], result["median_us"], result["speedup"], result["spread"])
    chosen = "the trace" if result["searched"] else "the rule's own"
    return [result["name"], str(result["tried"]), *map(text, numbers), chosen]


def _shape(kernel: Mapping[str, Any]) -> str:
    return f"{kernel['out_features']}x{kernel['in_features']}"


def print_fields(values: Mapping[str, Any]) -> None:
    """Prints a JSON object as two columns; nested objects get dotted names."""
    print_rows(("", ""), _flat(values))


def site_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """One row of text for each site, under `HEADINGS`."""
    return [
        [
            *(text(site.get(key)) for key in _KEYS),
            percent(site.get("relative_error")),
            text(site.get("reason")),
        ]
        for site in report["sites"]
    ]


def summary(report: Mapping[str, Any]) -> list[str]:
    """The sentences under the table."""
    sizes = report["bytes"]
    lines = []
    if sizes.get("after") is not None:
        ratio = f" ({sizes['after'] / sizes['before']:.1%})" if sizes["before"] else ""
        lines.append(
            f"bytes of weights: {sizes['before']:,} before, {sizes['after']:,} after{ratio}"
        )
        if sizes.get("code") is not None:
            lines.append(f"bytes of code: {sizes['code']:,}")
    else:
        lines.append(f"bytes of weights: {sizes['before']:,}")
    if sizes.get("folder") is not None:
        lines.append(f"the artifact's folder: {sizes['folder']:,} bytes")
    if report.get("error_measure"):
        lines.append(f"error is relative, of each layer's {report['error_measure']}")
    effect = report.get("activation_rounding_effect")
    if effect is not None:
        lines.append(
            "rounding activations to int8 (accuracy_level 4) changes the outputs by "
            f"{percent(effect)}"
        )
    lines += list(_validation(report.get("validation")))
    lines += list(_code(report))
    lines += [f"note: {note}" for note in report.get("notes", ())]
    lines += [f"warning: {warning}" for warning in report.get("warnings", ())]
    return lines


def _validation(found: Mapping[str, Any] | None) -> Iterator[str]:
    """What the metric of the dense model became, and what that took."""
    if found is None:
        return
    which = "compiled" if "compiled" in found else "predicted"
    yield (
        f"metric {found['function']}: {found['dense']:.6g} dense, {found[which]:.6g} {which}; a "
        f"drop of {text(found['drop'])}, where max_drop={found['max_drop']:g} "
        f"({found['drop_type']}); measured {found['evaluations']} times"
    )
    if found["given_back"]:
        names = [row["site"] for row in found["given_back"]]
        more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        yield f"given back to dense for it: {', '.join(names[:_MOST])}{more}"


def _code(report: Mapping[str, Any]) -> Iterator[str]:
    """What the report says of the generated code."""
    tuning = report.get("tuning")
    if tuning and tuning["tuned"]:
        sources = sorted({record["source"] for record in tuning["records"]})
        yield (
            f"kernels with tuned tilings: {tuning['tuned']} of {len(tuning['kernels'])} "
            f"({', '.join(sources)})"
        )
    records = [found["record"] for found in (tuning or {}).get("functions", ())]
    searched = sorted(record["name"] for record in records if record and record["trace"])
    if searched:
        yield f"functions with schedules that were searched for: {', '.join(searched)}"
    generic = report.get("generic_functions")
    if generic:
        names = [function["name"] for function in generic]
        rest = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        yield f"functions with no schedule of their own: {', '.join(names[:_MOST])}{rest}"


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Pairs of a dotted name and a text, for each leaf of nested objects and lists."""
    if isinstance(values, Mapping):
        items = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list | tuple) and any(isinstance(v, Mapping | list) for v in values):
        items = [(str(index), value) for index, value in enumerate(values)]
    else:
        return [(prefix, text(values))]
    pairs = []
    for key, value in items:
        pairs += _flat(value, f"{prefix}.{key}" if prefix else key)
    return pairs


def _finite(value: Any) -> Any:
    """A copy in which numbers that JSON lacks are None, and numpy's are Python's."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
