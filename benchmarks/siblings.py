"""Query, key and value, or gate and up, as sites of their own and as one: bytes, error and time.

`python -m benchmarks.siblings minilm` writes `benchmarks/results/siblings_minilm.json`: for some
schemes, each compiled with and without `--lossless fuse_siblings`, the bytes, the error of the
outputs against dense, and what a call takes at each batch, in turns. A residual or low rank of the
fused site has one down-projection for all of its parts. Needs a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import undense
from undense.frontend.resize import resized
from undense.passes.lossless import DEFAULT
from undense.runtime.bench import finished, interleaved
from undense.runtime.hardware import machine, usable_cores
from undense.runtime.session import Session
from undense.runtime.verify import verify

from .plans import SUBJECTS, rules_of, written
from .results import FOLDER, source_hash, write_whole

KINDS: Mapping[str, Sequence[str]] = {
    "separate": DEFAULT,
    "fused": (*DEFAULT, "fuse_siblings"),
}
SCHEMES = (
    "dense",
    "int_codes{bits=8,activations=int8}",
    "int_codes{bits=4,activations=int8}",
    "int_codes{bits=4,activations=int8}+residual{rank=16}",
    "low_rank{ratio=0.5}",
    "auto",
)


def main() -> int:
    """Writes the results of one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SUBJECTS)
    parser.add_argument("--batch", default="1,32", help="rows of a call")
    parser.add_argument("--schemes", nargs="*", default=SCHEMES)
    parser.add_argument("--plan-time", type=float, default=600.0, help="seconds, for auto")
    options = parser.parse_args()
    subject = SUBJECTS[options.model](False)
    with tempfile.TemporaryDirectory(prefix="undense-siblings-") as folder:
        os.environ["UNDENSE_CACHE"] = f"{folder}/cache"
        data = subject.calibration()
        files = written(subject.capture(), data, Path(folder))
        batches = [int(size) for size in options.batch.split(",")]
        feeds = resized(dict(data[0]), ir.load(files[0]), batches)
        rows: list[dict[str, Any]] = []
        for row in _rows(files, options.schemes, feeds, options.plan_time):
            rows.append(row)
            print(row, file=sys.stderr)
            document = {
                "command": f"python -m benchmarks.siblings {options.model}",
                "machine": machine(),
                "threads": usable_cores(),
                "sources": source_hash(),
                "batches": list(feeds),
                "rows": rows,
            }
            path = FOLDER / f"siblings_{options.model}.json"
            write_whole(path, json.dumps(document, indent=1) + "\n")
    return 0


def _rows(
    files: tuple[str, str],
    schemes: Sequence[str],
    feeds: Mapping[int, Mapping[str, Any]],
    plan_time: float,
) -> Iterator[dict[str, Any]]:
    model, data = files
    for scheme in schemes:
        sessions: dict[str, Session] = {
            kind: undense.compile(
                model, calibration_dataset=data, scheme=rules_of(model, scheme), lossless=rewrites,
                batch=list(feeds), plan_time=plan_time, with_onnx=False,
            )
            for kind, rewrites in KINDS.items()
        }  # fmt: skip
        times = {
            str(batch): interleaved({k: partial(finished, s, feed) for k, s in sessions.items()})
            for batch, feed in feeds.items()
        }
        yield {
            "scheme": scheme,
            **{
                kind: {
                    "bytes": session.report["bytes"]["after"],
                    "approximation_error": verify(session).approximation_error,
                    "milliseconds": {batch: vars(found[kind]) for batch, found in times.items()},
                }
                for kind, session in sessions.items()
            },
        }


if __name__ == "__main__":
    sys.exit(main())
