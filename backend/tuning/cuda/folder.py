"""The folder that goes to the GPU: compiled candidates, and the script that times them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tvm import tirx

from ....passes.errors import LoweringError
from ....runtime.hardware import usable_cores
from ...cuda.nvcc import code_and_resources, nvcc_version
from ...kernels.cuda.product import Product
from ...kernels.cuda.products import Ruled
from ...target import Target
from ..record import versions
from . import runner
from .candidates import Source, sources
from .limits import fits
from .runner.measure import CANDIDATES
from .runner.product import CODE

FORMAT = 1

SCRIPT = "measure.py"

_SCRIPT = '''"""Measures the kernels of this folder: `python measure.py --help`."""

import sys
from pathlib import Path

from runner.measure import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
'''

Json = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The candidates of one kernel at one number of rows.

    Attributes:
        ruled: the product.
        rows: that are measured.
        sources: the rule's own tiling first.
    """

    ruled: Ruled
    rows: int
    sources: Sequence[Source]


def write_folder(
    folder: Path,
    work: Iterable[Ruled],
    rows: Sequence[int],
    target: Target,
    trials: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Json:
    """Fills a folder; returns what `candidates.json` says.

    Args:
        folder: that is empty.
        work: the products.
        rows: numbers of rows to measure, of those that a tiling is chosen for.
        target: to compile for; candidates fit all of its architectures.
        trials: candidates of each product and number of rows at most.
        seed: of their order and of the inputs.
        progress: is told how many of how many candidates are compiled.

    Raises:
        LoweringError: nvcc refuses a kernel of a rule.
    """
    (folder / CODE).mkdir()
    jobs = [
        Job(each, number, sources(each, number, target, trials, seed))
        for each in work
        for number in rows
        if number in each.rows
    ]
    done, total = 0, sum(len(job.sources) for job in jobs)
    kernels = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        waiting = [
            (job, [pool.submit(_compiled, each, target.architectures) for each in job.sources])
            for job in jobs
        ]
        try:
            for job, codes in waiting:
                found = []
                for source, code in zip(job.sources, codes, strict=True):
                    found.append(_kept(source, code.result(), folder))
                    done += 1
                    progress(done, total)
                kernels.append(_described(job, found))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    document = {
        "format": FORMAT,
        "target": str(target),
        "seed": seed,
        "versions": {**versions("cuda"), "nvcc": ".".join(map(str, nvcc_version()))},
        "kernels": kernels,
    }
    document["digest"] = digest(document)
    text = json.dumps(document, indent=1) + "\n"
    (folder / CANDIDATES).write_text(text, encoding="utf-8")
    (folder / SCRIPT).write_text(_SCRIPT, encoding="utf-8")
    scripts = Path(runner.__file__).parent
    shutil.copytree(scripts, folder / "runner", ignore=shutil.ignore_patterns("__pycache__"))
    return document


def digest(document: Mapping[str, Any]) -> str:
    """Of everything that `candidates.json` says; code is in it by its name, which is its hash."""
    said = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _compiled(source: Source, architectures: Sequence[str]) -> bytes | None:
    """The code of a candidate; None where a multiprocessor has no place for it."""
    try:
        code, used = code_and_resources(source.text, architectures)
    except LoweringError:
        if not source.fields:
            raise
        return None
    return code if not source.fields or fits(used, source.launch.threads) else None


def _kept(source: Source, code: bytes | None, folder: Path) -> Json | None:
    """What is said of a candidate whose code is in the folder."""
    if code is None:
        return None
    name = f"{hashlib.sha256(code).hexdigest()}.fatbin"
    (folder / CODE / name).write_bytes(code)
    return {"fields": dict(source.fields), "code": name, "launch": asdict(source.launch)}


def _described(job: Job, found: Sequence[Json | None]) -> Json:
    kind, outputs, inputs = job.ruled.product.workload
    different: dict[tuple[str, str], Json] = {}
    for candidate in found:
        if candidate is not None:
            launch = json.dumps(candidate["launch"])
            different.setdefault((candidate["code"], launch), candidate)
    return {
        "kind": kind,
        "out_features": outputs,
        "in_features": inputs,
        "rows": job.rows,
        "arguments": product_arguments(job.ruled.product, job.rows),
        "candidates": list(different.values()),
        "left_out": len(found) - len(different),
    }


def product_arguments(product: Product, rows: int) -> list[Json]:
    """The buffers of a kernel, with what their random floats are multiplied by."""
    number = tirx.const(rows, "int64")
    return [
        {
            "name": argument.name,
            "shape": [int(length) for length in argument.shape],
            "dtype": argument.dtype,
            "scale": product.depth**-0.5 if argument.name == "x" else 1.0,
            "output": argument.name == "y",
        }
        for argument in product.arguments(number, None)
    ]
