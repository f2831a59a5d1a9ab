"""Writes docs/results.md from benchmarks/results, and a part of it into the README."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undense.passes.errors import InputError, UndenseError

from .results import FOLDER, ROOT, Row

_HEAD = """# Results

Written by `make table` from `benchmarks/results`; [benchmarks.md](benchmarks.md) says how it was
measured and how to read a row.
"""
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@dataclass(frozen=True)
class Column:
    """A metric: its heading, its name in the rows, and how it is written."""

    heading: str
    metric: str
    text: Callable[[float], str]


def _plain(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


ERROR = Column("output error", "output_error", _percent)
MODELS: dict[str, tuple[str, tuple[Column, ...]]] = {
    "minilm": (
        "MiniLM-L6 (encoder)",
        (
            Column("WordSim353", "wordsim353_spearman", _plain),
            Column("Lee50 Pearson", "lee50_pearson", _plain),
            ERROR,
        ),
    ),
    "smollm2": (
        "SmolLM2-135M (decoder with KV cache)",
        (
            Column("loss, nats a token", "loss_nats", lambda value: f"{value:+.3f}"),
            Column("top-1 agreement", "top1_agreement", _percent),
            ERROR,
        ),
    ),
    "efficientnet": (
        "EfficientNet-lite0 (1×1 convolutions)",
        (
            Column("top-1 agreement", "top1_agreement", _percent),
            Column("held out", "top1_agreement_held_out", _percent),
            ERROR,
        ),
    ),
}


def render(folder: Path = FOLDER, *, brief: bool = False) -> str:
    """The tables of all models that have results, as Markdown.

    A brief one has no data-free fits, only the first metric and the output error, and no spread.
    """
    parts = []
    for name, (title, columns) in MODELS.items():
        path = folder / f"{name}.json"
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            parts.append(_model(title, columns, document, brief))
    if not parts:
        raise InputError(f"{folder} holds no results; run `make bench`")
    return "\n\n".join(parts)


def _model(title: str, columns: Sequence[Column], document: dict[str, Any], brief: bool) -> str:
    rows: list[Row] = document["rows"]
    if brief:
        rows = [row for row in rows if row["calibrated"] or row["scheme"] == "dense"]
        columns = [columns[0], ERROR]
    labels = list(rows[0]["milliseconds"])
    headings = ["weights", *([] if brief else ["fit"]), "MB ORT", "MB TVM"]
    headings += [f"{column.heading} ORT / TVM" for column in columns]
    for label in labels:
        headings += [f"{label}: dense ORT, ms", "ORT, ms", "TVM, ms"]
    texts = 1 if brief else 2
    lines = [line(headings), line(["---"] * texts + ["---:"] * (len(headings) - texts))]
    lines += [line(_cells(row, columns, labels, brief)) for row in rows]
    return f"### {title}\n\n" + "\n".join(lines) + f"\n\n{_origin(document)}"


def _cells(row: Row, columns: Sequence[Column], labels: Sequence[str], brief: bool) -> list[str]:
    dense = row["scheme"] == "dense"
    weights = [f"`{row['scheme']}`", *(f"`{match}` as `{text}`" for match, text in row["rules"])]
    fit = "" if dense else "calibrated" if row["calibrated"] else "data-free"
    cells = [", ".join(weights), *([] if brief else [fit])]
    cells += [f"{row['bytes'][engine] / 1e6:.1f}" for engine in ("ort", "tvm")]
    for column in columns:
        values = (row["metrics"][engine].get(column.metric) for engine in ("ort", "tvm"))
        cells.append(" / ".join("–" if value is None else column.text(value) for value in values))
    for label in labels:
        times = row["milliseconds"][label]
        cells += [_time(times[engine], brief) for engine in ("dense", "ort", "tvm")]
    return cells


def _time(timing: dict[str, float], brief: bool) -> str:
    """Three digits and the spread: `11.2 (10.9–12.4)`."""
    median, low, high = (f"{timing[key]:.3g}" for key in ("median_ms", "p10_ms", "p90_ms"))
    return median if brief else f"{median} ({low}–{high})"


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _origin(document: dict[str, Any]) -> str:
    """The command and the machine; each kind of machine once if rows come from several."""
    machines = []
    for row in document["rows"]:
        environment = row["environment"]
        machine = environment["machine"]
        versions = environment["versions"]
        text = (
            f"{machine['cpu']} ({', '.join(machine['flags'])}), "
            f"{environment['threads']} threads, "
            f"ONNX Runtime {versions['onnxruntime']}, TVM {versions['apache-tvm']}"
        )
        machines += [text] if text not in machines else []
    return (
        f"`{document['command']}` on {'; '.join(machines)}. Times are medians of calls that take "
        "turns with dense ONNX Runtime; a range is from the 10th to the 90th percentile."
    )


def updated(readme: str, tables: str) -> str:
    """The README with the tables between the markers.

    Raises:
        InputError: a marker is missing, or they stand in the wrong order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"README.md: the markers {BEGIN} and {END} are missing; put them back")
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites both files; with `--check` only says by the exit code whether they are current."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the README is out of date")
    options = parser.parse_args(arguments)
    readme, full = ROOT / "README.md", ROOT / "docs" / "results.md"
    try:
        wanted = {
            readme: updated(readme.read_text(encoding="utf-8"), render(brief=True)),
            full: f"{_HEAD}\n{render()}\n",
        }
    except UndenseError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        current = (path.exists() and path.read_text(encoding="utf-8") for path in wanted)
        return int(list(current) != list(wanted.values()))
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
