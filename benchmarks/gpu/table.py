"""Writes docs/gpu.md from the results that GPU hosts have written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from undense.passes.errors import InputError, UndenseError

from ..results import FOLDER, ROOT
from ..table import line
from .aims import AIMS, Row
from .runner.baselines import LINEAR
from .runner.measure import OURS

RESULTS = FOLDER / "gpu"
PAGE = ROOT / "docs" / "gpu.md"

_HEAD = """# Kernels on GPUs

Written by `python -m benchmarks.gpu.table` from `benchmarks/results/gpu/`. A bundle of compiled
cases is measured on a host with a GPU: `CONTRIBUTING.md` says how. Weights are random; each output
is compared with float64 from the same stored weights before anything is timed. Times are medians of
device events around CUDA graphs, taking turns with the baselines in one process; copies of the
weights take turns that are together larger than twice the last cache.

A cell reads `microseconds (times as fast as torch; % of the floor's speed)`. The floor is the time
that the machine takes at least: bytes of weights, inputs and result over its measured copy
bandwidth, or operations over torch's rate at a large square product, whichever is longer.
"""


def render(folder: Path = RESULTS) -> str:
    """The whole page.

    Raises:
        InputError: there are no results.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise InputError(
            f"{folder} holds no results; run a bundle on a GPU host and put its results.json there"
        )
    parts = [_HEAD]
    for path in paths:
        parts += _machine(json.loads(path.read_text(encoding="utf-8")))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _machine(document: dict[str, Any]) -> list[str]:
    machine, bundle, rows = document["machine"], document["bundle"], document["rows"]
    rates = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in machine["rates"].items())
    parts = [
        f"## {machine['gpu']}",
        f"{machine['multiprocessors']} multiprocessors, {machine['cache_bytes'] / 2**20:.0f} MB of "
        f"cache; copies {machine['copy_bandwidth'] / 1e12:.2f} TB/s; torch {machine['torch']} with "
        f"CUDA {machine['cuda']} multiplies at {rates} TFLOP/s; sources {bundle['sources']}, "
        f"{bundle['target']}.",
        "### Aims\n\n" + _aims(rows),
    ]
    products = [row for row in rows if row["kind"] == "product"]
    for shape in _distinct(_shape(row) for row in products):
        found = [row for row in products if _shape(row) == shape]
        parts.append(f"### Products, {shape}\n\n{_products(found)}")
    others = [row for row in rows if row["kind"] != "product"]
    if others:
        parts.append("### Other kernels and models\n\n" + _others(others))
    return [*parts, *_left_out(document)]


def _aims(rows: Sequence[Row]) -> str:
    lines = _header(["case", "size", "against", "aim", "measured", ""])
    for aim in AIMS:
        value = aim.value(rows)
        against = aim.against or "copy bandwidth"
        wanted = f"{aim.wanted:g}" + (f" ({aim.tiles:g} of mma tiles)" if aim.tiles else "")
        measured = "–" if value is None else f"{value:.2f}"
        lines.append(line([aim.case, str(aim.size), against, wanted, measured, aim.verdict(value)]))
    return "\n".join(lines)


def _products(rows: Sequence[Row]) -> str:
    numbers = sorted({row["sizes"]["rows"] for row in rows})
    lines = _header(["structure", *(_count(number, "row") for number in numbers)])
    for name in _distinct(_kernels(row) for row in rows):
        own = {row["sizes"]["rows"]: row for row in rows if _kernels(row) == name}
        cells = [_cell(own[n], LINEAR) if n in own else "–" for n in numbers]
        lines.append(line([name, *cells]))
    return "\n".join(lines)


def _others(rows: Sequence[Row]) -> str:
    lines = _header(["case", "sizes", "undense", "against"])
    for row in rows:
        ratios = [f"{ratio:.2f}x {name}" for name, ratio in row["times_as_fast_as"].items()]
        lines.append(line([row["case"], _sizes(row), _cell(row, None), ", ".join(ratios) or "–"]))
    return "\n".join(lines)


def _cell(row: Row, against: str | None) -> str:
    ratio = row["times_as_fast_as"].get(against)
    times = "" if ratio is None else f"{ratio:.2f}x; "
    wrong = "" if row["correct"] else ", **wrong**"
    return f"{row['times'][OURS]['median']:.1f} ({times}{100 * row['of_floor']:.0f} %{wrong})"


def _left_out(document: dict[str, Any]) -> list[str]:
    """What was not measured, with the reasons."""
    found = _distinct(
        f"- {name}: {reason}" for row in document["rows"] for name, reason in row["skipped"].items()
    )
    found += [
        f"- {entry['case']}, {_sizes(entry)}: {entry['error']}" for entry in document["failed"]
    ]
    found += [f"- {entry['case']}: {entry['reason']}" for entry in document["left_out"]]
    return ["### Not measured\n\n" + "\n".join(found)] if found else []


def _kernels(row: Row) -> str:
    """The structure and the type, with the architecture of what is for one alone."""
    return f"{row['structure']} {row['dtype']} {row.get('architecture', '')}".rstrip()


def _shape(row: Row) -> str:
    """Outputs and inputs, as the name of the case has them."""
    return str(row["case"]).split()[-2]


def _sizes(row: Row) -> str:
    return ", ".join(f"{name} {length}" for name, length in row["sizes"].items())


def _header(names: Sequence[str]) -> list[str]:
    return [line(names), line(["---"] * len(names))]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _distinct(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def main(arguments: Sequence[str] | None = None) -> int:
    """Puts results in their place if some are given, and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.table", description=__doc__)
    parser.add_argument(
        "results", nargs="*", type=Path, help="files from GPU hosts to keep in benchmarks/results"
    )
    options = parser.parse_args(arguments)
    try:
        for path in options.results:
            keep(path, RESULTS)
        PAGE.write_text(render(), encoding="utf-8")
    except UndenseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def keep(path: Path, folder: Path) -> Path:
    """Copies results to the folder under the name of their GPU.

    Raises:
        InputError: the file holds no results of a bundle.
    """
    try:
        text = path.read_text(encoding="utf-8")
        name = str(json.loads(text)["machine"]["gpu"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no results of a bundle ({error}); run it again") from error
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{name.lower().replace(' ', '-')}.json"
    kept.write_text(text, encoding="utf-8")
    return kept


if __name__ == "__main__":
    sys.exit(main())
