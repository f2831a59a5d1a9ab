"""`make demo`: MiniLM in 8-bit codes and in trit-planes, on both engines, beside dense."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

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

SCHEMES = ("auto", "trit_planes{planes=3,group=64}")
TARGETS = ("ort-cpu", "llvm")
LINES = 128
"""Of the calibration text: half of what the benchmarks take, to be quick."""


def main() -> int:
    """Prints size, score and speed of each artifact; 1 if an engine is off its reference."""
    console = Console()
    start = time.perf_counter()
    ids, _ = minilm.example_args(1, 128)
    feed = {"input_ids": ids.numpy(), "attention_mask": (ids > 0).long().numpy()}
    with tempfile.TemporaryDirectory(prefix="undense-demo-") as scratch:
        console.print("capturing all-MiniLM-L6-v2 from its PyPI package", style="bold")
        model = capture(minilm.load(), minilm.example_args(), minilm.dynamic_shapes())
        calibration = minilm.calibration(LINES)
        compiled: dict[tuple[str, str], Session] = {}
        wanted = [("dense", "ort-cpu"), *((s, t) for s in SCHEMES for t in TARGETS)]
        for scheme, target in wanted:
            console.print(f"compiling {scheme} for {target}", style="bold", markup=False)
            with progress_bar(quiet=not console.is_terminal) as progress:
                compiled[scheme, target] = undense.compile(
                    model,
                    target=target,
                    scheme=scheme,
                    calibration_dataset=calibration,
                    with_onnx=False,
                    output=Path(scratch) / f"{scheme}-{target}",
                    progress=progress,
                )
        checks = [verify(session) for session in compiled.values()]
        calls = {f"{s} {t}": partial(session.run, feed) for (s, t), session in compiled.items()}
        timings = list(interleaved(calls, repeats=10).values())
        scores = [_score(session) for session in compiled.values()]
    table = Table(
        title="all-MiniLM-L6-v2, one sentence of 128 tokens",
        caption=f"{machine()['cpu']}, {machine()['cores']} threads; "
        f"the whole demo took {time.perf_counter() - start:.0f} s",
    )
    for heading in ("weights", "engine", "MB", "WordSim353", "ms", "p10–p90", "verify"):
        table.add_column(heading)
    for (scheme, target), session, score, timing, check in zip(
        compiled, compiled.values(), scores, timings, checks, strict=True
    ):
        size = f"{session.report['bytes']['after'] / 1e6:.1f}"
        verdict = "holds" if check.holds else f"FAILS: {check.execution_error:.2g}"
        table.add_row(scheme, target, size, f"{score:.3f}", *_spread(timing), verdict)
    console.print(table)
    return 0 if all(check.holds for check in checks) else 1


def _score(session: Session) -> float:
    tokens = minilm.tokenizer()

    def embed(words: Sequence[str]) -> metrics.Vectors:
        return minilm.embed(session, tokens, words)

    return metrics.word_similarity(embed, data.word_pairs()).spearman


def _spread(timing: Timing) -> tuple[str, str]:
    return f"{timing.median_ms:.1f}", f"{timing.p10_ms:.1f}–{timing.p90_ms:.1f}"


if __name__ == "__main__":
    sys.exit(main())
