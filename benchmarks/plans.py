"""Plans by measurement beside one scheme for all linears, at equal bytes and at equal time.

`python -m benchmarks.plans minilm` writes `benchmarks/results/plans_minilm.json`: for every uniform
scheme its bytes, times and distortion, and those of `auto` with its size as budget, and with its
time at each batch; the five points of `auto`; what planning took; and what a compile of the plan
without budget has in the end. Needs a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import undense
from undense.passes.errors import PlanError
from undense.passes.sites import find_sites
from undense.runtime.hardware import machine, usable_cores
from undense.runtime.verify import verify

from .efficientnet import EfficientNetLite0
from .minilm import MiniLM
from .results import FOLDER, ROOT, source_hash, write_whole
from .script import Feed, Subject
from .smollm2 import SmolLM2

SUBJECTS: Mapping[str, type[Subject]] = {
    "minilm": MiniLM,
    "smollm2": SmolLM2,
    "efficientnet": EfficientNetLite0,
}
UNIFORM = (
    "int_codes{bits=8,activations=int8}",
    "int_codes{bits=4,activations=int8}",
    "int_codes{bits=3,activations=int8}",
    "trit_planes{planes=2,activations=int8}",
    "low_rank{ratio=0.5}",
    "int_codes{bits=8}",
    "int_codes{bits=4}",
    "monarch{ratio=0.5}",
    "trit_planes{planes=3,activations=int8}",
)
NOISE = 1.05
"""Distortions that are nearer are the same."""
_TABLE = "int_codes{bits=8}"
"""Of weights whose rows are looked up; low rank and Monarch cannot hold them."""
_SHOWN = ("size_ratio", "latency_ratio", "effective_bits", "distortion", "additivity")


def main() -> int:
    """Writes the results of one model; returns 1 where `auto` loses to a uniform scheme."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SUBJECTS)
    parser.add_argument(
        "--plan-time", type=float, default=600.0, help="seconds for the plan whose cost is measured"
    )
    parser.add_argument(
        "--next-plan-time", type=float, default=60.0, help="seconds for each of the others"
    )
    parser.add_argument("--batch", default="1,32", help="rows at which kernels are timed")
    parser.add_argument(
        "--only", choices=("planning", "rows"),
        help="measure what planning takes and leads to, or the uniform schemes, and keep what the "
        "results have of the other",
    )  # fmt: skip
    parser.add_argument(
        "--schemes", nargs="*", default=UNIFORM, choices=UNIFORM, metavar="SCHEME",
        help="for --only rows: these; others stay as they are",
    )  # fmt: skip
    parser.add_argument(
        "--cache", metavar="FOLDER", help="what a run before has fitted and timed, for --only rows"
    )
    options = parser.parse_args()
    if options.only != "rows" and (options.cache or options.schemes is not UNIFORM):
        parser.error("--cache and --schemes are for --only rows: planning begins without a cache")
    subject = SUBJECTS[options.model](False)
    path = FOLDER / f"plans_{options.model}.json"
    with tempfile.TemporaryDirectory(prefix="undense-plans-") as folder:
        os.environ["UNDENSE_CACHE"] = options.cache or f"{folder}/cache"
        files = written(subject.capture(), subject.calibration(), Path(folder))
        seconds = options.plan_time, options.next_plan_time
        before = json.loads(path.read_text(encoding="utf-8")) if options.only else {"uniform": []}
        if options.only == "rows":
            document = before
            # Distortions that are known cost the next plans no time.
            _plan(files, "auto", None, document["batches"], seconds[0])
        else:
            document = _measured(options.model, files, options.batch, seconds)
            document["uniform"] = [
                {"sources": before["sources"], **row} for row in before["uniform"]
            ]
            write_whole(path, json.dumps(document, indent=1) + "\n")
        if options.only != "planning":
            rows = {row["scheme"]: row for row in before["uniform"]}
            for row in _rows(files, options.schemes, document["batches"], seconds[1]):
                rows[row["scheme"]] = row
                document["uniform"] = [rows[scheme] for scheme in UNIFORM if scheme in rows]
                # A long run that is stopped leaves what it has.
                write_whole(path, json.dumps(document, indent=1) + "\n")
    lost = list(losses(document))
    for line in lost:
        print(f"auto loses: {line}", file=sys.stderr)
    return 1 if lost else 0


def losses(document: Mapping[str, Any]) -> Iterator[str]:
    """Where a uniform scheme has less distortion than `auto` at its cost, by more than noise."""
    for row in document["uniform"]:
        for name, auto in row["auto"].items():
            if "refused" in auto or auto["distortion"] > NOISE * row["uniform"]["distortion"]:
                yield f"{row['scheme']} at equal {name}"


def written(model: ir.Model, data: Sequence[Feed], folder: Path) -> tuple[str, str]:
    """The model and its calibration data as the files that a user would have."""
    ir.save(model, folder / "model.onnx", external_data="model.data")
    arrays = {f"{n}/{name}": a for n, feed in enumerate(data) for name, a in feed.items()}
    np.savez(folder / "calibration.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "model.onnx"), str(folder / "calibration.npz")


def rules_of(model: str, scheme: str) -> list[dict[str, str]] | str:
    """That scheme for all sites of a file, or 8-bit codes where it cannot hold what is gathered."""
    if scheme in ("dense", "auto") or ("codes" in scheme and "+" not in scheme):
        return scheme
    gathered = [site.name for site in find_sites(ir.load(model))[0] if site.gathered]
    tables = [{"match": name, "scheme": _TABLE} for name in gathered]
    return [*tables, {"match": "*", "scheme": scheme}]


def _plan(
    files: tuple[str, str],
    scheme: Any,
    budget: Mapping[str, float] | None,
    batches: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    model, data = files
    planned = undense.plan(
        model, calibration_dataset=data, scheme=scheme, budget=budget, batch=batches,
        plan_time=seconds,
    )  # fmt: skip
    return dict(planned.report)


def _measured(
    name: str, files: tuple[str, str], batch: str, seconds: tuple[float, float]
) -> dict[str, Any]:
    """What planning takes and leads to."""
    batches = [int(size) for size in batch.split(",")]
    model, data = files
    command = [sys.executable, "-m", "benchmarks.plan_cost", *files, "--batch", batch]
    cost = subprocess.run(
        [*command, "--plan-time", str(seconds[0])], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    planning = json.loads(cost.stdout.splitlines()[-1])
    print(f"planning: {planning}", file=sys.stderr)
    auto = _plan(files, "auto", None, batches, seconds[1])
    document = {
        "command": f"python -m benchmarks.plans {name}",
        "machine": machine(),
        "threads": usable_cores(),
        "sources": source_hash(),
        "batches": batches,
        "plan_seconds": seconds[0],
        "distortion_measure": auto["distortion_measure"],
        "model_bytes": Path(model).with_name("model.data").stat().st_size,
        "planning": planning,
        "auto": {**_shown(auto), "budget": auto["budget"], "prediction": _spread(auto)},
        "pareto": auto["pareto"],
        "compiled": _compiled(model, data, batches, seconds[1]),
    }
    print(f"compiled: {document['compiled']}", file=sys.stderr)
    return document


def _rows(
    files: tuple[str, str], schemes: Sequence[str], batches: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Each of the uniform schemes, and `auto` at its bytes and at its times."""
    for scheme in schemes:
        uniform = _plan(files, rules_of(files[0], scheme), None, batches, seconds)
        limit = {"size_ratio": uniform["size_ratio"]}
        found = {"size": _plan_or_refusal(files, limit, batches, seconds)}
        for size, ratio in uniform["latency_ratio"].items():
            limit = {"latency_ratio": ratio}
            found[f"time at batch {size}"] = _plan_or_refusal(files, limit, [int(size)], seconds)
        print(f"{scheme}: {_short(uniform)}", file=sys.stderr)
        for what, row in found.items():
            print(f"  auto, equal {what}: {_short(row)}", file=sys.stderr)
        yield {
            "scheme": scheme,
            "sources": source_hash(),
            "uniform": _shown(uniform),
            "auto": found,
        }


def _compiled(model: str, data: str, batches: Sequence[int], seconds: float) -> dict[str, Any]:
    """What the artifact of the plan without budget has, measured."""
    session = undense.compile(
        model, calibration_dataset=data, batch=batches, plan_time=seconds, with_onnx=False
    )
    report, checked = session.report, verify(session)
    return {
        "predicted": _shown(report["planning"]),
        "size_ratio": report["bytes"]["after"] / report["bytes"]["before"],
        "latency": report["latency"],
        "approximation_error": checked.approximation_error,
        "execution_error": checked.execution_error,
        "holds": checked.holds,
    }


def _plan_or_refusal(
    files: tuple[str, str], budget: Mapping[str, float], batches: Sequence[int], seconds: float
) -> dict[str, Any]:
    try:
        return _shown(_plan(files, "auto", budget, batches, seconds))
    except PlanError as error:
        return {"refused": str(error)}


def _shown(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in _SHOWN}


def _spread(report: Mapping[str, Any]) -> dict[str, Any]:
    """Of measured over predicted distortions."""
    found = {name: value for name, value in report["prediction"].items() if name != "pairs"}
    return {**found, "options": len(report["prediction"]["pairs"])}


def _short(found: Mapping[str, Any]) -> str:
    if "refused" in found:
        return str(found["refused"])
    times = ", ".join(f"{ratio:.3f} at {batch}" for batch, ratio in found["latency_ratio"].items())
    return f"size {found['size_ratio']:.3f}, time {times}, distortion {found['distortion']:.3g}"


if __name__ == "__main__":
    sys.exit(main())
