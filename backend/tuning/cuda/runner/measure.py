"""Measures the kernels of a folder on the GPU of this machine.

Each candidate is checked against the rule's own kernel, then takes turns with it. What was measured
is in results.json after each kernel; another run goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from .gpu import DeviceError, Gpu, Json
from .product import CODE, Product

CANDIDATES, RESULTS = "candidates.json", "results.json"

_BRIEF, _LONG, _LEFT = 5, 25, 3
"""Samples of each candidate and of each of the best, and how many of them are measured again."""


class CandidateError(Exception):
    """A candidate cannot be measured."""

    def __init__(self, candidate: int, cause: str) -> None:
        super().__init__(f"candidate {candidate} failed ({cause})")
        self.candidate = candidate


class Results:
    """`results.json`: what was measured so far."""

    def __init__(self, path: Path, head: Json) -> None:
        self._path = path
        self.document: Json = {**head, "kernels": [], "failed": []}
        if path.exists():
            self._take(json.loads(path.read_text(encoding="utf-8")), head)

    def has(self, number: int) -> bool:
        """Whether a kernel is done."""
        return any(entry["kernel"] == number for entry in self.document["kernels"])

    def failed(self, number: int) -> set[int]:
        """Candidates of a kernel that are not to be tried again."""
        found = self.document["failed"]
        return {entry["candidate"] for entry in found if entry["kernel"] == number}

    def put(self, part: str, entry: Json) -> None:
        """Adds an entry and writes the file."""
        self.document[part].append(entry)
        scratch = self._path.with_suffix(".partial")
        scratch.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, self._path)

    def _take(self, before: Json, head: Json) -> None:
        for name in ("candidates", "gpu"):
            if before.get(name) != head[name]:
                raise DeviceError(
                    f"{self._path} is of another {'folder' if name == 'candidates' else 'GPU'}: "
                    "move it away, or give another --output"
                )
        self.document = before


def main(
    folder: Path, arguments: Sequence[str] | None = None, machine: Callable[[], Gpu] = Gpu
) -> int:
    """Measures what is left; 0 when that is done or the time is up, 1 after a failure, or 2.

    Args:
        folder: of the candidates.
        arguments: of the command line.
        machine: makes the GPU.
    """
    options = _options(arguments)
    try:
        document = json.loads((folder / CANDIDATES).read_text(encoding="utf-8"))
        _check_code(folder, document)
        gpu = machine()
        head = {
            "format": 1,
            "candidates": document["digest"],
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            **gpu.facts(),
        }
        results = Results(options.output or folder / RESULTS, head)
    except (DeviceError, ImportError, OSError, ValueError, KeyError) as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 2
    return _measure(gpu, folder, document, results, options.seconds)


def _measure(gpu: Gpu, folder: Path, document: Json, results: Results, seconds: float) -> int:
    end = time.monotonic() + seconds
    kernels = document["kernels"]
    for number, described in enumerate(kernels):
        name = "{kind} {out_features}x{in_features} for {rows} rows".format(**described)
        if results.has(number) or 0 in results.failed(number):
            continue
        if time.monotonic() > end:
            left = sum(not results.has(i) for i in range(len(kernels)))
            print(f"the time is up: {left} kernels are left; run it again to go on", flush=True)
            return 0
        try:
            entry = _compared(gpu, folder, described, document["seed"], results.failed(number))
        except CandidateError as error:
            # What a kernel did wrong may have ended the use of the GPU by this process.
            entry = {"kernel": number, "candidate": error.candidate, "error": str(error)}
            results.put("failed", entry)
            print(f"{name}: {error}; run it again to go on without", flush=True)
            return 1
        results.put("kernels", {"kernel": number, **entry})
        print(f"{name}: {_said(entry)}", flush=True)
    return 0


def _compared(gpu: Gpu, folder: Path, described: Json, seed: int, failed: set[int]) -> Json:
    with _candidate(0):
        product = Product(gpu, folder, described, seed)
    numbers = [i for i in range(1, len(described["candidates"])) if i not in failed]

    def compared(chosen: Iterable[int], samples: int) -> dict[int, Json | None]:
        found = {}
        for number in chosen:
            with _candidate(number):
                found[number] = product.compare(number, samples)
        return found

    brief = compared(numbers, _BRIEF)
    right = [entry for entry in brief.values() if entry is not None]
    best = [entry["candidate"] for entry in sorted(right, key=_ratio)[:_LEFT]]
    again = [entry for entry in compared(best, _LONG).values() if entry is not None]
    return {
        "best": min(again, key=_ratio, default=None),
        "brief": right,
        "wrong": [number for number, entry in brief.items() if entry is None],
    }


@contextlib.contextmanager
def _candidate(number: int) -> Iterator[None]:
    """Says which candidate fails."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CandidateError(number, lines[0]) from error


def _ratio(entry: Json) -> float:
    return float(entry["ratio"])


def _said(entry: Json) -> str:
    best, wrong = entry["best"], len(entry["wrong"])
    dropped = f", {wrong} dropped for wrong outputs" if wrong else ""
    if best is None:
        return f"no other candidate{dropped}"
    return (
        f"{best['median_us']:.2f} µs beside {best['default_us']:.2f} µs of the rule's own, "
        f"spread {best['spread']:.1%}, of {len(entry['brief'])} candidates{dropped}"
    )


def _check_code(folder: Path, document: Json) -> None:
    """Refuses a folder that was copied in part."""
    for kernel in document["kernels"]:
        for candidate in kernel["candidates"]:
            code = folder / CODE / candidate["code"]
            found = hashlib.sha256(code.read_bytes()).hexdigest()
            if not candidate["code"].startswith(found):
                raise DeviceError(f"{code} is damaged: copy the folder again")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="measure.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=1500.0, help="start no kernel after so many; default 1500"
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="default: results.json beside this script"
    )
    return parser.parse_args(arguments)
