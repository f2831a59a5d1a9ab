"""What the benchmark scripts share: options, the loop over variants, timing, and the results."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
from numpy.typing import NDArray
from undense.passes.errors import UndenseError
from undense.runtime.bench import interleaved
from undense.runtime.hardware import usable_cores
from undense.runtime.session import Session
from undense.runtime.verify import verify

from .results import FOLDER, Results, Row, source_hash
from .workbench import TARGETS, Variant, Workbench

Feed = Mapping[str, NDArray[Any]]

DENSE = Variant("dense")
TIME_A_ROW = 10.0
"""Seconds of timing for each input of a row; slow engines get fewer samples."""


class Subject(ABC):
    """A model under test: how it is captured, timed and scored.

    Attributes:
        name: of the script and of the results file.
        variants: the rows behind the dense one.
    """

    name: ClassVar[str]
    variants: Sequence[Variant]

    @abstractmethod
    def __init__(self, quick: bool) -> None:
        """Quick subjects have fewer samples."""

    @abstractmethod
    def capture(self) -> ir.Model:
        """The dense model."""

    @abstractmethod
    def example(self) -> Feed:
        """One sample, for data-free variants to be verified on."""

    @abstractmethod
    def calibration(self) -> Sequence[Feed]:
        """Samples for the statistics."""

    @abstractmethod
    def timed(self) -> Mapping[str, Feed]:
        """Inputs that are timed, by a label such as `1x128`."""

    @abstractmethod
    def score(self, session: Session) -> dict[str, float]:
        """Metrics of a session; the dense one is scored first."""


def run(subject_type: type[Subject], arguments: Sequence[str] | None = None) -> int:
    """Measures the variants that are missing or out of date; 1 if one of them failed."""
    options = _options(subject_type.name, arguments)
    subject = subject_type(quick=options.quick)
    threads = usable_cores()
    folder = Path(tempfile.mkdtemp(prefix="undense-quick-")) if options.quick else FOLDER
    results = Results(subject.name, threads, folder)
    order = [variant.name for variant in [DENSE, *subject.variants]]
    chosen = [
        variant
        for variant in [DENSE, *subject.variants]
        if any(fnmatch.fnmatchcase(variant.name, pattern) for pattern in options.only)
        and (options.force or not results.current(variant.name))
    ]
    print(f"{subject.name}: {len(chosen)} of {len(order)} rows to measure, {threads} threads, "
          f"sources {source_hash()}", file=sys.stderr)  # fmt: skip
    if not chosen:
        return 0
    failed = []
    with tempfile.TemporaryDirectory(prefix="undense-bench-") as scratch:
        bench = Workbench(
            subject.capture(), subject.example(), subject.calibration(), Path(scratch), _progress
        )
        dense = bench.build(DENSE, "ort", threads)
        dense_scores = subject.score(dense)
        for variant in chosen:
            try:
                row = _measure(subject, bench, variant, dense, dense_scores, options.quick)
            except UndenseError as error:
                print(f"{variant.name}: {error}", file=sys.stderr)
                failed.append(variant.name)
                continue
            results.put(variant.name, row, order)
            print(_line(variant, row), flush=True)
    print(f"{subject.name}: rows in {results.path}", file=sys.stderr)
    return 1 if failed else 0


def _measure(
    subject: Subject,
    bench: Workbench,
    variant: Variant,
    dense: Session,
    dense_scores: dict[str, float],
    quick: bool,
) -> Row:
    """One row: sizes, scores, errors, and times of both engines beside dense ONNX Runtime."""
    sessions, seconds = {}, {}
    for engine in TARGETS:
        start = time.perf_counter()
        reuse = variant == DENSE and engine == "ort"
        built = dense if reuse else bench.build(variant, engine, dense.num_threads)
        sessions[engine], seconds[engine] = built, time.perf_counter() - start
    checks = {engine: verify(session) for engine, session in sessions.items()}
    for engine, check in checks.items():
        if not check.holds:
            raise UndenseError(
                f"{engine} is off its reference by {check.execution_error:.2g}; "
                "run undense verify on an artifact of this scheme"
            )
    known = {id(dense): dense_scores}
    scores = {
        engine: known.get(id(session)) or subject.score(session)
        for engine, session in sessions.items()
    }
    return {
        "scheme": variant.scheme,
        "rules": list(variant.rules),
        "ignored": list(variant.ignored),
        "calibrated": variant.calibrated,
        "bytes": {
            "dense": loaded_bytes(dense),
            **{engine: loaded_bytes(session) for engine, session in sessions.items()},
        },
        "dense_metrics": dense_scores,
        "metrics": scores,
        "execution_error": {engine: check.execution_error for engine, check in checks.items()},
        "compile_seconds": {engine: round(value, 1) for engine, value in seconds.items()},
        "milliseconds": {
            label: times({"dense": dense, **sessions}, feed, TIME_A_ROW, quick=quick)
            for label, feed in subject.timed().items()
        },
    }


def loaded_bytes(session: Session) -> int:
    """What the engine loads from disk: weights, and the code around them."""
    sizes = session.report["bytes"]
    return int(sizes["after"] + sizes["code"])


def times(
    sessions: Mapping[str, Session], feed: Feed, total: float, *, quick: bool
) -> dict[str, Any]:
    """Timings of the sessions in turns, 10 to 30 of each, for about `total` seconds."""
    calls = {name: partial(session.run, feed) for name, session in sessions.items()}
    seconds = 0.0
    for call in calls.values():
        call()
        start = time.perf_counter()
        call()
        seconds += time.perf_counter() - start
    repeats = 3 if quick else max(10, min(30, int(total / seconds)))
    return {name: asdict(timing) for name, timing in interleaved(calls, repeats).items()}


def _progress(done: int, total: int, text: str) -> None:
    """One line that is written over; silent where nobody looks on."""
    if sys.stderr.isatty():
        print(f"\r{text} {done}/{total}\033[K", end="", file=sys.stderr, flush=True)


def _line(variant: Variant, row: Row) -> str:
    sizes = ", ".join(f"{engine} {size / 1e6:.1f} MB" for engine, size in row["bytes"].items())
    scores = "; ".join(
        f"{engine} " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        for engine, values in row["metrics"].items()
    )
    times = "; ".join(
        f"{label} " + ", ".join(f"{name} {t['median_ms']:.3g} ms" for name, t in timings.items())
        for label, timings in row["milliseconds"].items()
    )
    return f"{variant.name}\n  {sizes}\n  {scores}\n  {times}"


def _options(name: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=f"Measures {name} and writes benchmarks/results/{name}.json; "
        "rows that these sources made on this machine are not measured again.",
    )
    parser.add_argument(
        "--only", metavar="GLOB", action="append", help="rows to measure; may be repeated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run on little data; results go to /tmp"
    )
    parser.add_argument("--force", action="store_true", help="measure rows that are current too")
    options = parser.parse_args(arguments)
    options.only = options.only or ["*"]
    return options
