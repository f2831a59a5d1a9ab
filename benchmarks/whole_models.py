"""Times whole models, compiled untuned and without data, beside ONNX Runtime.

Every row is a model, a scheme and an engine; all engines of a model take turns on one input.
`benchmarks/results/whole_models.json` and `docs/whole_models.md` are what it writes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import undense
from undense.runtime.hardware import machine

from .efficientnet import EfficientNetLite0
from .minilm import MiniLM
from .results import FOLDER, ROOT, source_hash, write_whole
from .script import Subject, loaded_bytes, times
from .smollm2 import SmolLM2

SUBJECTS: tuple[type[Subject], ...] = (MiniLM, SmolLM2, EfficientNetLite0)
BASELINE = "ONNX Runtime dense"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    BASELINE: {"target": "ort-cpu", "scheme": "dense"},
    "undense dense": {"target": "llvm", "scheme": "dense"},
    "ONNX Runtime int_codes{bits=4}": {"target": "ort-cpu", "scheme": "int_codes{bits=4}"},
    "undense int_codes{bits=4,activations=int8}": {
        "target": "llvm",
        "scheme": "int_codes{bits=4,activations=int8}",
    },
    "undense int_codes{bits=4,activations=float}": {
        "target": "llvm",
        "scheme": "int_codes{bits=4,activations=float}",
    },
    "undense trit_planes{planes=2,activations=int8}": {
        "target": "llvm",
        "scheme": "trit_planes{planes=2,activations=int8}",
    },
    "ONNX Runtime low_rank{ratio=0.25}": {"target": "ort-cpu", "scheme": "low_rank{ratio=0.25}"},
    "undense low_rank{ratio=0.25}": {"target": "llvm", "scheme": "low_rank{ratio=0.25}"},
}
EMBEDDINGS = ["re:.*embedding.*"]
"""Rows of a table are gathered; trit planes have no such form."""
PATH = FOLDER / "whole_models.json"
PAGE = ROOT / "docs" / "whole_models.md"
_SECONDS = 40.0
"""Of timing for each input of all engines."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the models that are asked for, and writes both files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_models", description=__doc__)
    parser.add_argument(
        "--model", action="append", help="minilm, smollm2 or efficientnet; all by default"
    )
    parser.add_argument("--threads", default="1,2", help="as 1,2")
    parser.add_argument("--quick", action="store_true", help="small models; nothing is written")
    options = parser.parse_args(arguments)
    threads = [int(number) for number in options.threads.split(",")]
    document = json.loads(PATH.read_text()) if PATH.exists() else {"models": {}}
    for subject_type in SUBJECTS:
        if options.model and subject_type.name not in options.model:
            continue
        rows = _measure(subject_type(quick=options.quick), threads, quick=options.quick)
        document["models"][subject_type.name] = {
            "machine": machine(),
            "sources": source_hash(),
            "rows": rows,
        }
        print(render({"models": {subject_type.name: document["models"][subject_type.name]}}))
    if not options.quick:
        write_whole(PATH, json.dumps(document, indent=1) + "\n")
        write_whole(PAGE, render(document))
    return 0


def _measure(subject: Subject, threads: Sequence[int], *, quick: bool) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="undense-bench-") as scratch:
        folders = {}
        for number, (name, options) in enumerate(VARIANTS.items()):
            start = time.perf_counter()
            folder = Path(scratch) / f"{number}.undense"
            embeddings = EMBEDDINGS if options["scheme"].startswith(("trit", "low")) else []
            model = subject.capture()
            present = [p for p in embeddings if _has_embedding(model)]
            undense.compile(
                model,
                output=folder,
                ignored_scope=present,
                tuned=False,
                with_onnx=options["target"] != "llvm",
                **options,
            )
            seconds = round(time.perf_counter() - start, 1)
            print(f"{subject.name}: {name} compiled in {seconds} s", file=sys.stderr)
            folders[name] = folder
            rows[name] = {"name": name, **options, "compile_seconds": seconds, "times": {}}
        for count in threads:
            sessions = {
                name: undense.load(folder, num_threads=count) for name, folder in folders.items()
            }
            for name, session in sessions.items():
                rows[name]["bytes"] = loaded_bytes(session)
            for label, feed in subject.timed().items():
                for name, timing in times(sessions, feed, _SECONDS, quick=quick).items():
                    rows[name]["times"].setdefault(str(count), {})[label] = timing
    return list(rows.values())


def _has_embedding(model: Any) -> bool:
    from undense.passes.sites import find_sites

    return any("embedding" in site.name for site in find_sites(model)[0])


def render(document: Mapping[str, Any]) -> str:
    """The page: one table a model and number of threads, times and ratios to the baseline."""
    parts = [
        "# Whole models\n",
        "Written by `python -m benchmarks.whole_models`: models compiled untuned and without data,",
        "all engines in turns in one process, medians in milliseconds (p10 to p90) and in brackets",
        "how many times as fast as ONNX Runtime with dense weights.\n",
    ]
    for model, found in document["models"].items():
        about = found["machine"]
        parts.append(f"## {model}\n")
        parts.append(f"{about.get('cpu', about)}; sources {found['sources']}.\n")
        labels = list(next(iter(found["rows"][0]["times"].values())))
        parts.append(
            "| threads | engine and scheme | MB | compiled in | " + " | ".join(labels) + " |"
        )
        parts.append("|" + "---|" * (4 + len(labels)))
        for count in found["rows"][0]["times"]:
            base = found["rows"][0]["times"][count]
            for row in found["rows"]:
                cells = [_cell(row["times"][count][label], base[label]) for label in labels]
                size = f"{row['bytes'] / 1e6:.1f}"
                parts.append(
                    f"| {count} | {row['name']} | {size} | {row['compile_seconds']} s | "
                    + " | ".join(cells)
                    + " |"
                )
        parts.append("")
    return "\n".join(parts)


def _cell(timing: Mapping[str, float], base: Mapping[str, float]) -> str:
    ratio = base["median_ms"] / timing["median_ms"]
    spread = f"{timing['p10_ms']:.3g} to {timing['p90_ms']:.3g}"
    return f"{timing['median_ms']:.3g} ({spread}) [{ratio:.2f}×]"


if __name__ == "__main__":
    sys.exit(main())
