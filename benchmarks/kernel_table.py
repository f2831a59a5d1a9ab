"""Writes docs/kernels.md from benchmarks/results/kernels.json."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from undense.passes.errors import InputError, UndenseError

from .kernel_timing import OUT_OF_CACHE
from .results import FOLDER, ROOT, Row
from .table import line

_HEAD = """# Kernels

Written by `{command}`, or from its `benchmarks/results/kernels.json` by
`python -m benchmarks.kernel_table`. One layer at a time, `y = x Wᵀ` for random W: its kernels in
undense beside what other engines have for the same shape. All engines take turns in one process on
the same shape, rows and threads; a time is the median of the calls. The file also has the 10th and
the 90th percentile, the limit that each row meets, the ratio to the fastest 4-bit peer, and the
errors: of the execution, against float64, and of rounding x to int8.

A cell reads `milliseconds (times as fast as float32 in ONNX Runtime; times the limit)`. The limit
is the time that the machine takes at least: the longer of reading weights, x and y once from where
the weights lie, and of doing all multiplications and additions at the measured peak. Weights are
taken to lie in the smallest level that holds them, since every call reads the same ones; a figure
below one says that a smaller level held part of them. Under *weights from memory* copies of them
take turns that are together {copies} times as large as the last cache.

Of ONNX Runtime's MatMulNBits (blocks of 32 and 128, accuracy levels 0 and 4) the fastest one is
shown. Its low-rank and Monarch rows are the functions that undense writes into an ONNX file, in
stock operators. undense's dense rows hold two microseconds of TVM's virtual machine.
"""
_BEST_OF_ORT = "MatMulNBits, 4 bits, fastest"
DENSE = ("undense dense", "ORT float32", "torch float32")
"""Layers that are timed at more numbers of rows than all."""


def render(folder: Path = FOLDER) -> str:
    """The whole page.

    Raises:
        InputError: there are no results.
    """
    path = folder / "kernels.json"
    if not path.exists():
        raise InputError(f"{folder} holds no kernels.json; run `python -m benchmarks.kernels`")
    document = json.loads(path.read_text(encoding="utf-8"))
    rows: list[Row] = document["rows"]
    parts = [_HEAD.format(command=document["command"], copies=OUT_OF_CACHE), _machines(document)]
    parts.append("## Summary\n\n" + _summary(rows))
    for weights, threads, number in _distinct(_full(rows), "weights", "threads", "rows"):
        where = "" if weights == "cache" else ", weights from memory"
        found = _where(rows, weights=weights, threads=threads, rows=number)
        parts.append(
            f"## {_count(number, 'row')}, {_count(threads, 'thread')}{where}\n\n{_cells(found)}"
        )
    parts += _dense(rows)
    if document["skipped"]:
        lines = sorted({_skip(row) for row in document["skipped"]})
        parts.append("## Skipped\n\n" + "\n".join(lines))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _machines(document: dict[str, Any]) -> str:
    """What each run was made with, and what the machine allowed in it."""
    parts = ["## The machine"]
    for run in document["runs"]:
        machine, versions = run["machine"], run["versions"]
        names = ", ".join(f"{name} {version}" for name, version in versions.items())
        parts.append(
            f"{machine['cpu']} ({', '.join(machine['flags'])}), {_count(machine['cores'], 'core')};"
            f" {names}; sources {run['sources']}."
        )
        head = ["threads", "float32, GFLOP/s", "int8, 10⁹ operations/s"]
        peaks = run["peak"]
        levels = list(next(iter(peaks.values()))["read_gb_per_s"])
        lines = _header([*head, *(f"{level}, GB/s" for level in levels)], texts=0)
        for threads, peak in peaks.items():
            int8 = [f"{value:.0f} ({name})" for name, value in peak["int8_gops"].items()]
            fma = [f"{value:.0f} ({bits} bits)" for bits, value in peak["fma_gflops"].items()]
            read = [f"{value:.0f}" for value in peak["read_gb_per_s"].values()]
            lines.append(line([threads, ", ".join(fma), ", ".join(int8) or "–", *read]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _summary(rows: Sequence[Row]) -> str:
    """Geometric means over the shapes."""
    found = _full(_where(rows, weights="cache"))
    best, columns = _best(found), _distinct(found, "threads", "rows")
    headings = [f"{_count(m, 'row')}, {_count(threads, 'thread')}" for threads, m in columns]
    lines = _header(["engine and form", *headings])
    for label in _labels(best):
        cells = []
        for threads, m in columns:
            measured = _where(best, threads=threads, rows=m)
            logs = [math.log(row["speedup"]) for row in measured if _label(row) == label]
            cells.append(f"{math.exp(sum(logs) / len(logs)):.2f}×" if logs else "–")
        lines.append(line([_code(label), *cells]))
    return (
        "How many times as fast as float32 in ONNX Runtime: geometric means over the shapes, each "
        "call on the same weights.\n\n" + "\n".join(lines)
    )


def _cells(rows: Sequence[Row]) -> str:
    """One table: forms down, shapes across."""
    best = _best(rows)
    shapes = _distinct(best, "shape")
    lines = _header(["engine and form", *(_title(shape) for (shape,) in shapes)])
    for label in _labels(best):
        found = {_title(row["shape"]): row for row in best if _label(row) == label}
        cells = [_cell(found.get(_title(shape))) for (shape,) in shapes]
        lines.append(line([_code(label), *cells]))
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{row['median_ms']:.3g} ({row['speedup']:.2f}×; {row['distance']:.1f})"


def _dense(rows: Sequence[Row]) -> list[str]:
    """Dense layers at every number of rows: undense's time over ONNX Runtime's."""
    dense = [row for row in _where(rows, weights="cache") if _label(row) == DENSE[0]]
    parts = []
    for (threads,) in _distinct(dense, "threads"):
        found = _where(dense, threads=threads)
        shapes = _distinct(found, "shape")
        lines = _header(["rows", *(_title(shape) for (shape,) in shapes)], texts=0)
        for number in sorted({row["rows"] for row in found}):
            by_shape = {_title(row["shape"]): row for row in _where(found, rows=number)}
            cells = [_cell(by_shape.get(_title(shape))) for (shape,) in shapes]
            lines.append(line([str(number), *cells]))
        parts.append(
            f"## Dense, {_count(threads, 'thread')}, by the number of rows\n\n" + "\n".join(lines)
        )
    return parts


def _full(rows: Sequence[Row]) -> list[Row]:
    """Those of numbers of rows at which more than dense layers were timed, if there are any."""
    full = {row["rows"] for row in rows if _label(row) not in DENSE}
    return [row for row in rows if row["rows"] in full] or list(rows)


def _best(rows: Sequence[Row]) -> list[Row]:
    """The rows with the fastest 4-bit one of ONNX Runtime in place of all of them."""
    fastest: dict[str, Row] = {}
    kept = []
    for row in rows:
        if row["engine"] != "ORT" or not row["four_bit"]:
            kept.append(row)
            continue
        key = str([row[name] for name in ("shape", "rows", "threads", "weights")])
        if key not in fastest or row["median_ms"] < fastest[key]["median_ms"]:
            fastest[key] = row
    return [*kept, *(row | {"scheme": _BEST_OF_ORT} for row in fastest.values())]


def _label(row: Row) -> str:
    return f"{row['engine']} {row['scheme']}"


def _labels(rows: Sequence[Row]) -> list[str]:
    """Each form once: undense's first, the others by engine."""
    order = ("undense", "ORT", "torch", "ggml")
    labels = dict.fromkeys(_label(row) for row in rows)
    return sorted(labels, key=lambda label: order.index(label.split()[0]))


def _code(label: str) -> str:
    engine, scheme = label.split(" ", 1)
    return f"{engine} `{scheme}`" if "{" in scheme else label


def _skip(row: Row) -> str:
    return f"- {row['layer']}, {_title(row['shape'])}: {row['reason']}"


def _where(rows: Iterable[Row], /, **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _distinct(rows: Iterable[Row], *names: str) -> list[tuple[Any, ...]]:
    """Combinations of fields in the order of their first row."""
    found = {str(values): values for row in rows if (values := tuple(row[name] for name in names))}
    return list(found.values())


def _title(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _header(headings: Sequence[str], texts: int = 1) -> list[str]:
    rule = ["---"] * texts + ["---:"] * (len(headings) - texts)
    return [line(headings), line(rule)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the page; with `--check` only says by the exit code whether it is current."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is out of date")
    options = parser.parse_args(arguments)
    page = ROOT / "docs" / "kernels.md"
    try:
        wanted = render()
    except UndenseError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        return int(not page.exists() or page.read_text(encoding="utf-8") != wanted)
    page.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
