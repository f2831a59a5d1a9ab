"""Checks and times the cases of a bundle: prints a line a measurement and writes results.json."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .baselines import Options
from .engine import Engine
from .floor import NOMINAL_BANDWIDTH, NOMINAL_RATE, floor_of, work_of
from .machine import described, measured_peaks
from .measure import OURS, copies_beyond, measured, planned, weight_copies
from .spec import Case, Sizes, read_cases
from .timing import first_line

_SEED = 1


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for of the bundle in a folder.

    Returns:
        0, 1 if a case failed or was wrong, 2 where there is no GPU or no such case.
    """
    options = _options(arguments)
    cases, about = read_cases(folder / "cases.json")
    chosen = [case for case in cases if _wanted(case, options.only)]
    if not chosen:
        print(f"no case is named by {', '.join(options.only)}", file=sys.stderr)
        return 2
    available = torch.cuda.is_available()
    if options.dry_run:
        for case, sizes in planned(chosen):
            print(_floor_line(case, sizes))
    if not available:
        print("this machine has no GPU that torch can use, so nothing is measured", file=sys.stderr)
        return 2
    if options.dry_run:
        return 0
    return _run(folder, chosen, about, options)


class Results:
    """`results.json`, written whole after every row."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.document: dict[str, Any] = {**head, "rows": [], "failed": [], "left_out": []}

    def put(self, part: str, entry: dict[str, Any]) -> None:
        """Adds an entry to `rows`, `failed` or `left_out`, and writes the file."""
        self.document[part].append(entry)
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, self.path)


def _run(
    folder: Path, cases: Sequence[Case], about: dict[str, Any], options: argparse.Namespace
) -> int:
    started = time.monotonic()
    engine = Engine(folder / "cases")
    engine.start()
    peaks = measured_peaks()
    head = {"bundle": about, "command": options.command, "machine": described(peaks)}
    results = Results(options.output, head)
    print(f"copy {peaks.copy_bandwidth / 1e12:.2f} TB/s, {head['machine']['gpu']}", flush=True)
    asked = Options(
        options.compile_rows,
        options.max_autotune,
        lambda size: copies_beyond(peaks.cache_bytes, size),
    )
    generator = torch.Generator("cuda")
    for case in cases:
        if time.monotonic() - started > options.seconds:
            results.put("left_out", {"case": case.name, "reason": "the time was used up"})
            continue
        try:
            generator.manual_seed(_SEED)
            weights = weight_copies(case, peaks.cache_bytes, generator)
            for sizes in case.sizes:
                row = measured(engine, case, sizes, weights, peaks, generator, options=asked)
                results.put("rows", row)
                print(_line(row), flush=True)
        except Exception as error:
            results.put("failed", {"case": case.name, "error": first_line(error)})
            print(f"{case.name} failed: {first_line(error)}", flush=True)
        weights = []
        torch.cuda.empty_cache()
    wrong = [row for row in results.document["rows"] if not row["correct"]]
    failed = len(results.document["failed"])
    print(
        f"{len(results.document['rows'])} measurements, {len(wrong)} beyond their tolerance, "
        f"{failed} cases failed; {results.path}, {time.monotonic() - started:.0f} s"
    )
    return 1 if wrong or failed else 0


def _wanted(case: Case, only: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(case.name, pattern) for pattern in only)


def _floor_line(case: Case, sizes: Sizes) -> str:
    work = work_of(case, sizes)
    floor = floor_of(work, NOMINAL_BANDWIDTH, NOMINAL_RATE)
    return (
        f"{case.name}, {_at(sizes)}: {work.bytes / 1e6:.1f} MB, {work.operations / 1e9:.2f} GFLOP, "
        f"at least {floor.seconds * 1e6:.1f} µs on an H100 by {floor.bound}"
    )


def _line(row: dict[str, Any]) -> str:
    ours = row["times"][OURS]
    ratios = ", ".join(f"{x:.2f}x {name}" for name, x in row["times_as_fast_as"].items())
    verdict = "" if row["correct"] else f" BEYOND {row['tolerance']:.1e}"
    launched = "" if ours["launched"] == "graph" else f" [{ours['launched']}]"
    return (
        f"{row['case']}, {_at(row['sizes'])}: error {row['error']:.1e}{verdict}, "
        f"{ours['median']:.1f} µs ({ours['p10']:.1f} to {ours['p90']:.1f}){launched}, "
        f"{100 * row['of_floor']:.0f} % of the floor's speed, "
        f"{100 * row['of_copy_bandwidth']:.0f} % of copy bandwidth; {ratios}"
    )


def _at(sizes: Sizes) -> str:
    return ", ".join(f"{name} {length}" for name, length in sizes.items())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Checks and times the CUDA kernels of this bundle."
    )
    parser.add_argument(
        "--only",
        metavar="GLOB",
        action="append",
        help="cases to measure, such as 'trit_planes* 4096x11008 *'; may be repeated",
    )
    parser.add_argument(
        "--seconds", type=float, default=1500.0, help="start no case after so many; default 1500"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("results.json"), help="default results.json"
    )
    parser.add_argument(
        "--compile-rows",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[1, 2048],
        metavar="ROWS",
        help="rows at which torch.compile gets chains of products; default 1,2048",
    )
    parser.add_argument(
        "--max-autotune", action="store_true", help="compare with torch.compile's own products too"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print cases and floors, and measure nothing"
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    options.only = options.only or ["*"]
    options.command = " ".join(["python run.py", *given])
    return options
