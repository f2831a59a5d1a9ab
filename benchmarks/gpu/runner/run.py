"""Checks and times the cases of a bundle: prints a line a measurement and writes results.json."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .baselines import Options
from .engine import Engine
from .floor import NOMINAL_BANDWIDTH, NOMINAL_RATE, floor_of, work_of
from .machine import Peaks, described, measured_peaks
from .measure import OURS, copies_beyond, measured, planned, weight_copies
from .reference import Tensors
from .results import Results
from .spec import Case, Sizes, read_cases
from .timing import Clock, first_line

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


def runnable(cases: Sequence[Case], capability: tuple[int, int], results: Results) -> list[Case]:
    """The cases with code for a GPU of a compute capability; the others are left out by name."""
    found = []
    for case in cases:
        reason = case.refusal(capability)
        if reason is None:
            found.append(case)
        else:
            results.put("left_out", {"case": case.name, "reason": reason})
            print(f"{case.name} is left out: {reason}", flush=True)
    return found


def measure_all(
    engine: Engine,
    cases: Sequence[Case],
    peaks: Peaks,
    results: Results,
    generator: torch.Generator,
    *,
    options: Options,
    seconds: float,
    lost: Callable[[], bool],
    clock: type[Clock] = Clock,
) -> bool:
    """Measures what the results do not have yet; what fails is recorded, and the rest goes on.

    Args:
        engine: that runs the cases.
        cases: in order.
        peaks: of the machine.
        results: to add to.
        generator: of weights and inputs.
        options: of the baselines.
        seconds: after which no case is started.
        lost: asked after a failure whether this process can use the GPU no more.
        clock: to time with.

    Returns:
        Whether all was gone through: not if the GPU was lost.
    """
    started = time.monotonic()
    for case in cases:
        left = [sizes for sizes in case.sizes if not results.has(case, sizes)]
        if left and time.monotonic() - started > seconds:
            results.put("left_out", {"case": case.name, "reason": "the time was used up"})
            continue
        weights: list[Tensors] = []
        for sizes in left:
            try:
                generator.manual_seed(_SEED)
                weights = weights or weight_copies(case, peaks.cache_bytes, generator)
                row = measured(
                    engine, case, sizes, weights, peaks, generator, options=options, clock=clock
                )
            except Exception as error:
                entry = {"case": case.name, "sizes": dict(sizes), "error": first_line(error)}
                results.put("failed", entry)
                print(f"{case.name}, {_at(sizes)} failed: {entry['error']}", flush=True)
                if lost():
                    return False
            else:
                results.put("rows", row)
                print(_line(row), flush=True)
    return True


def _run(
    folder: Path, cases: Sequence[Case], about: dict[str, Any], options: argparse.Namespace
) -> int:
    started = time.monotonic()
    engine = Engine(folder / "cases")
    engine.start()
    peaks = measured_peaks()
    head = {"bundle": about, "command": options.command, "machine": described(peaks)}
    results = Results(options.output, head, resume=options.resume)
    print(f"copy {peaks.copy_bandwidth / 1e12:.2f} TB/s, {head['machine']['gpu']}", flush=True)
    finished = measure_all(
        engine,
        runnable(cases, torch.cuda.get_device_capability(), results),
        peaks,
        results,
        torch.Generator("cuda"),
        options=Options(
            options.compile_rows,
            options.max_autotune,
            lambda size: copies_beyond(peaks.cache_bytes, size),
        ),
        seconds=options.seconds,
        lost=_lost,
    )
    spent = time.monotonic() - started
    if not finished:
        print("the GPU is lost to this process; another one goes on", flush=True)
        rest = str(max(0.0, options.seconds - spent))
        again = [sys.executable, *sys.argv, "--resume", "--seconds", rest]
        os.execv(sys.executable, again)
    wrong, failed = len(results.wrong), len(results.document["failed"])
    print(
        f"{len(results.document['rows'])} measurements, {wrong} beyond their tolerance, "
        f"{failed} failed; {results.path}, {spent:.0f} s"
    )
    return 1 if wrong or failed else 0


def _lost() -> bool:
    """Whether an error stays: after an illegal access every call fails."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


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
    parser.add_argument(
        "--resume", action="store_true", help="add what is missing to the results that are there"
    )
    options = parser.parse_args(given)
    options.only = options.only or ["*"]
    options.command = " ".join(["python run.py", *given])
    return options
