"""Plans by measurement beside one scheme for all linears, at equal bytes and at equal time.

`python -m benchmarks.plans minilm` writes `benchmarks/results/plans_minilm.json`: for every uniform
scheme its bytes, kernel times and distortion, those of `auto` with its size as budget, and with its
time; the five points of `auto`; and what planning took. Needs a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import undense
from undense.passes.errors import PlanError
from undense.passes.sites import find_sites
from undense.runtime.hardware import machine, usable_cores

from .efficientnet import EfficientNetLite0
from .minilm import MiniLM
from .results import FOLDER, source_hash, write_whole
from .script import Subject
from .smollm2 import SmolLM2

SUBJECTS: Mapping[str, type[Subject]] = {
    "minilm": MiniLM,
    "smollm2": SmolLM2,
    "efficientnet": EfficientNetLite0,
}
UNIFORM = (
    "int_codes{bits=8,activations=int8}",
    "int_codes{bits=4,activations=int8}",
    "int_codes{bits=4,group=32,activations=int8}",
    "int_codes{bits=3,activations=int8}",
    "trit_planes{planes=3,activations=int8}",
    "trit_planes{planes=2,activations=int8}",
    "low_rank{ratio=0.5}",
)
TABLE = {"match": "re:.*embedding.*", "scheme": "int_codes{bits=8}"}
"""A table of rows is gathered from; planes and low rank cannot hold it."""
_SHOWN = ("size_ratio", "latency_ratio", "effective_bits", "distortion", "distortion_measure")


def main() -> int:
    """Writes the results of one model; returns 1 where `auto` loses to a uniform scheme."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SUBJECTS)
    parser.add_argument("--plan-time", type=float, default=60.0, help="seconds for each plan")
    parser.add_argument("--batch", default="1,32", help="rows at which kernels are timed")
    options = parser.parse_args()
    batches = [int(size) for size in options.batch.split(",")]
    subject = SUBJECTS[options.model](False)
    model, data = subject.capture(), subject.calibration()

    def plan(scheme: Any, budget: Mapping[str, float] | None) -> dict[str, Any]:
        begun = time.perf_counter()
        report = undense.plan(
            model.clone(), calibration_dataset=data, scheme=scheme, budget=budget, batch=batches,
            plan_time=options.plan_time,
        ).report  # fmt: skip
        return {
            **{name: report[name] for name in _SHOWN},
            "pareto": report["pareto"],
            "prediction": {k: v for k, v in report["prediction"].items() if k != "pairs"},
            "additivity": report["additivity"],
            "seconds": time.perf_counter() - begun,
        }

    before = _peak_bytes()
    first = plan("auto", None)
    planning = {"seconds": first["seconds"], "bytes_above_import": _peak_bytes() - before}
    gathered = any(site.gathered for site in find_sites(model)[0])
    rows = [_row(scheme, [TABLE] if gathered else [], plan) for scheme in UNIFORM]
    document = {
        "command": f"python -m benchmarks.plans {options.model}",
        "machine": machine(),
        "threads": usable_cores(),
        "sources": source_hash(),
        "batches": batches,
        "planning": planning,
        "auto": first,
        "uniform": rows,
    }
    path = FOLDER / f"plans_{options.model}.json"
    write_whole(path, json.dumps(document, indent=1) + "\n")
    return 1 if any(_loses(row) for row in rows) else 0


def _row(scheme: str, tables: Sequence[Mapping[str, str]], plan: Any) -> dict[str, Any]:
    """A uniform scheme, and what `auto` makes of its bytes and of its time."""
    named = plan([*tables, {"match": "*", "scheme": scheme}], None)
    slowest = max(named["latency_ratio"].values())
    row = {"scheme": scheme, "uniform": named}
    for name, limit in (("size_ratio", named["size_ratio"]), ("latency_ratio", slowest)):
        try:
            row[f"auto, equal {name}"] = plan("auto", {name: limit})
        except PlanError as error:
            row[f"auto, equal {name}"] = {"refused": str(error)}
    print(f"{scheme}: {_short(named)}", file=sys.stderr)
    for name in ("size_ratio", "latency_ratio"):
        print(f"  auto, equal {name}: {_short(row[f'auto, equal {name}'])}", file=sys.stderr)
    return row


def _short(found: Mapping[str, Any]) -> str:
    if "refused" in found:
        return str(found["refused"])
    times = ", ".join(f"{ratio:.3f} at {batch}" for batch, ratio in found["latency_ratio"].items())
    return f"size {found['size_ratio']:.3f}, time {times}, distortion {found['distortion']:.3g}"


def _loses(row: Mapping[str, Any]) -> bool:
    """Whether a uniform scheme has less distortion than `auto` at its size, by more than noise."""
    auto = row["auto, equal size_ratio"]
    return "refused" in auto or auto["distortion"] > 1.05 * row["uniform"]["distortion"]


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
