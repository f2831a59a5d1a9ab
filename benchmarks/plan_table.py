"""Writes docs/plans.md from benchmarks/results/plans_*.json, and siblings_*.json beside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from undense.passes.errors import InputError
from undense.runtime.plan_report import measure

from .plans import NOISE, SUBJECTS, losses
from .results import FOLDER, ROOT
from .table import MODELS, line

_HEAD = f"""# Plans beside uniform schemes

Written by `python -m benchmarks.plan_table` from what `python -m benchmarks.plans MODEL` has
measured; [planning.md](planning.md) says how plans are made.

Sizes and times are those of the whole model over dense, predicted by the plan from packed bytes and
measured kernels. A row is one scheme for every linear; beside it stands the distortion of `auto`
with exactly that size as its budget, and with exactly that time at one batch. In brackets: the
share of the uniform scheme's distortion. Equal is what is nearer than {NOISE - 1:.0%}.
"""


def main() -> int:
    """Writes the page."""
    (ROOT / "docs" / "plans.md").write_text(render(), encoding="utf-8")
    return 0


def render(folder: Path = FOLDER) -> str:
    """The whole page, as Markdown.

    Raises:
        InputError: there are no results.
    """
    paths = [path for name in SUBJECTS if (path := folder / f"plans_{name}.json").exists()]
    if not paths:
        raise InputError(f"{folder} holds no plans; run `python -m benchmarks.plans MODEL`")
    parts = [_HEAD]
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        name = path.stem.removeprefix("plans_")
        parts += [f"## {MODELS[name][0]}", *_model(document)]
        siblings = path.with_name(f"siblings_{name}.json")
        if siblings.exists():
            parts += _siblings(json.loads(siblings.read_text(encoding="utf-8")))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _model(document: Mapping[str, Any]) -> Iterator[str]:
    lost = list(losses(document))
    machine = document["machine"]
    yield (
        f"{machine['cpu']}, {document['threads']} threads; distortion is the "
        f"{measure(document)}. "
        + (f"`auto` loses at: {'; '.join(lost)}." if lost else _wins(document))
    )
    yield _planning(document)
    yield _compiled(document)
    yield "Points of `auto` to choose from:"
    yield "\n".join(_points(document))
    if document["uniform"]:
        yield "\n".join(_rows(document))
    others = [row for row in document["uniform"] if row.get("sources") != document.get("sources")]
    if others:
        yield (
            f"{len(others)} of {len(document['uniform'])} of these rows are of other sources than "
            "what stands above them: they were measured at another time."
        )


def _wins(document: Mapping[str, Any]) -> str:
    compared = len(document["uniform"])
    return f"`auto` loses nowhere in {compared} schemes." if compared else "No scheme was compared."


def _planning(document: Mapping[str, Any]) -> str:
    found, size = document["planning"], document["model_bytes"]
    return (
        f"Planning from an empty cache, with `--plan-time {document['plan_seconds']:g}`, took "
        f"{found['seconds']:.0f} s and "
        f"{found['bytes_above_import'] / 1e6:.0f} MB beyond imports "
        f"({found['bytes_above_import'] / size:.1f} times the model's {size / 1e6:.0f} MB), the "
        f"processes that fit and compile {found['bytes_of_workers'] / 1e6:.0f} MB with imports. "
        + _prediction(document["auto"]["prediction"])
    )


def _prediction(found: Mapping[str, Any]) -> str:
    if found["median_ratio"] is None:
        return "No prediction of a distortion was compared with a measurement in that time."
    return (
        f"Measured over predicted distortion at {found['options']} random options: median "
        f"{found['median_ratio']:.2f}, quartiles {found['p25_ratio']:.2f} and "
        f"{found['p75_ratio']:.2f}."
    )


def _compiled(document: Mapping[str, Any]) -> str:
    """The plan without budget, predicted and as its artifact measured."""
    found = document["compiled"]
    auto = {**document["auto"], **found.get("predicted", {})}
    times = ", ".join(
        f"{ratio:.2f} predicted and {found['latency'][batch]['ratio']:.2f} measured at {batch}"
        for batch, ratio in auto["latency_ratio"].items()
    )
    return (
        f"Without budget (`{auto['budget']}`): bytes {auto['size_ratio']:.1%} predicted and "
        f"{found['size_ratio']:.1%} as written; time of a run by batch {times}; distortion "
        f"{auto['distortion']:.2g}. The artifact's outputs differ from dense by "
        f"{found['approximation_error']:.2g}, and from its reference by "
        f"{found['execution_error']:.1g}, which {'holds' if found['holds'] else 'does not hold'}: "
        "activations next to the middle of two int8 values are rounded either way."
    )


def _points(document: Mapping[str, Any]) -> Iterator[str]:
    batches = [str(batch) for batch in document["batches"]]
    headings = ["size", *(f"time at {batch}" for batch in batches), "bits a weight", "distortion"]
    yield line(headings)
    yield line(["---:"] * len(headings))
    for point in document["pareto"]:
        times = [f"{point['latency_ratio'][batch]:.2f}" for batch in batches]
        bits = f"{point['effective_bits']:.2f}"
        yield line([f"{point['size_ratio']:.1%}", *times, bits, f"{point['distortion']:.2g}"])


def _rows(document: Mapping[str, Any]) -> Iterator[str]:
    batches = [str(batch) for batch in document["batches"]]
    equal = ["size", *(f"time at batch {batch}" for batch in batches)]
    headings = ["one scheme", "size", *(f"time at {batch}" for batch in batches), "distortion"]
    headings += [f"`auto`, equal {what}" for what in equal]
    yield line(headings)
    yield line(["---", *["---:"] * (len(headings) - 1)])
    for row in document["uniform"]:
        uniform = row["uniform"]
        yield line(
            [
                f"`{row['scheme']}`",
                f"{uniform['size_ratio']:.1%}",
                *(f"{uniform['latency_ratio'][batch]:.2f}" for batch in batches),
                f"{uniform['distortion']:.2g}",
                *(_beside(row["auto"][what], uniform) for what in equal),
            ]
        )


def _siblings(document: Mapping[str, Any]) -> Iterator[str]:
    batches = [str(batch) for batch in document["batches"]]
    yield (
        "With `--lossless fuse_siblings` linears that read one value are one site, with one "
        "down-projection where it is of low rank or has a residual. Measured by "
        f"`{document['command']}`: what that makes of bytes, of the error of the outputs against "
        "dense, and of the time of a call, artifacts in turns."
    )
    headings = ["scheme", "MB", "MB fused", "error", "error fused"]
    headings += [f"time fused / separate at {batch}" for batch in batches]
    table = [line(headings), line(["---", *["---:"] * (len(headings) - 1)])]
    for row in document["rows"]:
        separate, fused = row["separate"], row["fused"]
        times = (
            fused["milliseconds"][batch]["median_ms"] / separate["milliseconds"][batch]["median_ms"]
            for batch in batches
        )
        table.append(
            line(
                [
                    f"`{row['scheme']}`",
                    *(f"{kind['bytes'] / 1e6:.1f}" for kind in (separate, fused)),
                    *(f"{kind['approximation_error']:.2g}" for kind in (separate, fused)),
                    *(f"{ratio:.2f}" for ratio in times),
                ]
            )
        )
    yield "\n".join(table)


def _beside(auto: Mapping[str, Any], uniform: Mapping[str, Any]) -> str:
    if "refused" in auto:
        return "refused"
    return f"{auto['distortion']:.2g} ({auto['distortion'] / uniform['distortion']:.2f})"


if __name__ == "__main__":
    sys.exit(main())
