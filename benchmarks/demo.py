"""`make demo`: MiniLM planned by measurement, and in trit-planes on both engines, beside dense."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import undense
from rich.console import Console
from rich.table import Table
from undense.frontend.load import load as capture
from undense.runtime.bench import Timing, interleaved
from undense.runtime.hardware import machine
from undense.runtime.progress import progress_bar
from undense.runtime.session import Session
from undense.runtime.verify import verify

from . import data, metrics
from .models import minilm

BUILDS = (
    ("dense", "ort-cpu"),
    ("auto", "llvm"),
    ("trit_planes{planes=3,group=64}", "ort-cpu"),
    ("trit_planes{planes=3,group=64}", "llvm"),
)
"""Scheme and target; planning by measurement takes the longest."""
LINES = 128
"""Of the calibration text: half of what the benchmarks take, to be quick."""
TOKENS = 128


def main() -> int:
    """Prints size, score and speed of each artifact; 1 if an engine is off its reference."""
    # Where no terminal sets the width, the table is shown whole.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    start = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"{time.perf_counter() - start:4.0f} s  {text}", markup=False)

    with tempfile.TemporaryDirectory(prefix="undense-demo-") as scratch:
        say("capturing all-MiniLM-L6-v2 from its PyPI package")
        model = capture(minilm.load(), minilm.example_args(), minilm.dynamic_shapes())
        calibration = minilm.calibration(LINES)
        sessions: dict[tuple[str, str], Session] = {}
        for scheme, target in BUILDS:
            say(f"compiling {scheme} for {target}")
            with progress_bar(quiet=False) as progress:
                sessions[scheme, target] = undense.compile(
                    model,
                    target=target,
                    scheme=scheme,
                    calibration_dataset=calibration,
                    with_onnx=target != "llvm",
                    output=Path(scratch) / f"{scheme}-{target}",
                    progress=progress,
                )
        say("measuring")
        table, holds = _measure(sessions)
    say("done")
    console.print(table)
    return 0 if holds else 1


def _measure(sessions: Mapping[tuple[str, str], Session]) -> tuple[Table, bool]:
    """The table, and whether every engine is within the tolerance of its reference."""
    ids, _ = minilm.example_args(1, TOKENS)
    feed = {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())}
    calls = {" ".join(key): partial(session.run, feed) for key, session in sessions.items()}
    timings = interleaved(calls, repeats=10)
    table = Table(
        title=f"all-MiniLM-L6-v2, one text of {TOKENS} tokens",
        caption=f"{machine()['cpu']}, {machine()['cores']} threads",
    )
    for heading in ("weights", "target", "MB", "WordSim353", "ms", "p10–p90", "verify"):
        table.add_column(heading, overflow="fold")
    holds = True
    for (scheme, target), session in sessions.items():
        check = verify(session)
        holds &= check.holds
        verdict = "holds" if check.holds else f"FAILS: {check.execution_error:.2g}"
        size = f"{session.report['bytes']['after'] / 1e6:.1f}"
        spread = _spread(timings[f"{scheme} {target}"])
        table.add_row(scheme, target, size, f"{_score(session):.3f}", *spread, verdict)
    return table, holds


def _score(session: Session) -> float:
    tokens = minilm.tokenizer()

    def embed(words: Sequence[str]) -> metrics.Vectors:
        return minilm.embed(session, tokens, words)

    return metrics.word_similarity(embed, data.word_pairs()).spearman


def _spread(timing: Timing) -> tuple[str, str]:
    return f"{timing.median_ms:.1f}", f"{timing.p10_ms:.1f}–{timing.p90_ms:.1f}"


if __name__ == "__main__":
    sys.exit(main())
