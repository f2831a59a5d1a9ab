"""What planning takes: seconds and peak memory of one `plan`, in a process of its own.

`python -m benchmarks.plan_cost model.onnx calibration.npz` prints them as JSON. Memory is what is
resident above the level after a plan of a tiny model, when all is imported. Pages of mapped files
(the model, the cache, libraries) are counted apart, and so are the processes that fit and compile,
without the pages that they share, imports included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
import psutil
import undense

_INTERVAL = 0.2


def main() -> int:
    """Plans for the budget that is there without one, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("--plan-time", type=float, default=600.0)
    parser.add_argument("--batch", default="1,32")
    options = parser.parse_args()
    batches = [int(size) for size in options.batch.split(",")]
    undense.plan(_tiny(), calibration_dataset=_samples(), batch=batches, cache=False)
    stages: dict[str, float] = {}
    begun = time.perf_counter()

    memory = PeakMemory()

    def progress(done: int, total: int, stage: str) -> None:
        del done, total
        stages.setdefault(stage, time.perf_counter() - begun)
        memory.stage = stage

    with memory:
        report = undense.plan(
            options.model, calibration_dataset=options.calibration, batch=batches,
            plan_time=options.plan_time, progress=progress,
        ).report  # fmt: skip
    found = {
        "seconds": time.perf_counter() - begun,
        "stages_begin_after": stages,
        "bytes_above_import": memory.own,
        "bytes_above_import_by_stage": memory.by_stage,
        "mapped_bytes_above_import": memory.mapped,
        "bytes_of_workers": memory.workers,
        "size_ratio": report["size_ratio"],
        "latency_ratio": report["latency_ratio"],
    }
    print(json.dumps(found))
    return 0


class PeakMemory:
    """The most that this process and its children hold while this lasts, beyond what it held.

    Attributes:
        stage: what is being done, as whoever watches knows.
        by_stage: the most of `own` in each of the stages.
        mapped: those of mapped files.
        workers: bytes of all children together that no other process shares.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._own, self._mapped = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.stage = "start"
        self.by_stage: dict[str, int] = {}
        self.mapped = self.workers = 0

    @property
    def own(self) -> int:
        """Resident bytes of this process above those at the beginning, without mapped files."""
        return max(self.by_stage.values(), default=0)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            own, mapped = self._now()
            self.by_stage[self.stage] = max(self.by_stage.get(self.stage, 0), own - self._own)
            self.mapped = max(self.mapped, mapped - self._mapped)
            self.workers = max(self.workers, sum(self._of_workers()))

    def _now(self) -> tuple[int, int]:
        found = self._process.memory_info()
        return found.rss - found.shared, found.shared

    def _of_workers(self) -> Iterator[int]:
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                yield child.memory_full_info().uss


def _tiny() -> ir.Model:
    weight = ir.tensor(np.eye(64, dtype=np.float32), name="w")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # weights come after the text
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[t,64] x) => (float[t,64] y) '
    return ir.from_onnx_text(text + "{ y = MatMul(x, w) }", initializers=[weight])


def _samples() -> list[tuple[Any, ...]]:
    random = np.random.default_rng(0)
    return [(random.standard_normal((8, 64), np.float32),) for _ in range(4)]


if __name__ == "__main__":
    sys.exit(main())
