"""Times the kernels of one layer beside their peers, and tells how far each is off its limit.

All layers of a shape take turns in one process, on the same input, number of threads and number of
rows. `docs/kernels.md` says how to read what comes out.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from undense.passes.errors import UndenseError
from undense.runtime.hardware import usable_cores

from . import ggml, kernel_layers, kernel_peers, kernel_table
from .kernel_forms import Weight
from .kernel_layer import Layer
from .kernel_peers import BASELINE
from .kernel_results import KernelResults
from .kernel_table import DENSE
from .kernel_timing import Cell, time_cell
from .peak import Peak, measure
from .results import FOLDER, ROOT, Row

Shape = tuple[int, int]
Maker = Callable[[Weight], Layer]

HEAD: Shape = (49152, 576)
BEYOND_CACHES: Shape = (11008, 4096)
SHAPES: tuple[Shape, ...] = (
    *((384, 384), (1536, 384), (384, 1536)),  # MiniLM
    *((576, 576), (192, 576), (1536, 576), (576, 1536), HEAD),  # SmolLM2
    *((1024, 1024), (2048, 2048)),
)
ROWS = (1, 8, 32, 128)
_ROWS_OF_HEAD = 128
"""Nobody asks for the logits of more positions at once."""
DENSE_ROWS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 64, 97, 127, 128, 200, 256, 512)
CODES = (
    "int_codes{bits=8,activations=int8}",
    "int_codes{bits=8,activations=float}",
    "int_codes{bits=4,activations=int8}",
    "int_codes{bits=4,activations=float}",
    "trit_planes{planes=2,activations=int8}",
    "trit_planes{planes=2,activations=float}",
    "trit_planes{planes=2,pack=base3,activations=int8}",
    "trit_planes{planes=2,tied=false,activations=int8}",
)
FACTORS = tuple(
    f"{kind}{{ratio={r}}}" for kind in ("low_rank", "monarch") for r in (0.5, 0.25, 0.125)
)
_BITS_IN_ORT = {
    f"MatMulNBits 4 bits, block {group}, accuracy level {level}": (
        f"int_codes{{bits=4,group={group},activations={activations}}}"
    )
    for group, (level, activations) in itertools.product((32, 128), ((4, "int8"), (0, "float")))
}


def makers() -> dict[str, Maker]:
    """The layers of one shape by name, engine by engine; all are compared with the first."""
    undense, ort = kernel_layers.ENGINE, kernel_peers.ORT
    found: dict[str, Maker] = {
        BASELINE: kernel_peers.ort_dense,
        f"{ort} dynamic int8": kernel_peers.ort_int8,
    }
    for name, scheme in _BITS_IN_ORT.items():
        found[f"{ort} {name}"] = partial(
            kernel_peers.ort_structured, scheme=scheme, name=name, four_bit=True
        )
    for scheme in FACTORS:
        found[f"{ort} {scheme}"] = partial(kernel_peers.ort_structured, scheme=scheme, name=scheme)
    found[f"{kernel_peers.TORCH} float32"] = kernel_peers.torch_dense
    found[f"{kernel_peers.TORCH} dynamic int8"] = kernel_peers.torch_int8
    for name in ggml.FORMATS:
        found[f"{ggml.ENGINE} {name}"] = partial(ggml.quantized, name=name)
    found[f"{undense} dense"] = kernel_layers.dense
    for scheme in (*CODES, *FACTORS):
        found[f"{undense} {scheme}"] = partial(kernel_layers.structured, scheme=scheme)
    return found


def cells(shape: Shape, rows: Sequence[int], dense_rows: Sequence[int]) -> Iterator[Cell]:
    """What is timed of a shape."""
    if shape != BEYOND_CACHES:
        yield from (Cell(number) for number in rows)
        most = _ROWS_OF_HEAD if shape == HEAD else max(dense_rows)
        more = (number for number in dense_rows if number not in rows and number <= most)
        yield from (Cell(number, dense_only=True) for number in more)
    if shape in (HEAD, BEYOND_CACHES):
        yield Cell(1, cached=False)


def chosen(shape: Shape, only: Sequence[str]) -> dict[str, Maker]:
    """The layers of a shape that a pattern names, and what they are compared with."""
    wanted = {
        name: maker
        for name, maker in makers().items()
        if any(fnmatch.fnmatchcase(f"{title(shape)} {name}", pattern) for pattern in only)
        and not (shape == BEYOND_CACHES and name.endswith(FACTORS))
    }
    return {BASELINE: makers()[BASELINE], **wanted} if wanted else {}


def title(shape: Shape) -> str:
    """`OUTxIN`."""
    return f"{shape[0]}x{shape[1]}"


def build(weight: Weight, wanted: Mapping[str, Maker]) -> tuple[list[Layer], list[Row]]:
    """The layers, and which peers cannot be had with the reason."""
    layers, skipped = [], []
    for name, maker in wanted.items():
        try:
            layers.append(maker(weight))
        except UndenseError as error:
            if name.startswith(kernel_layers.ENGINE):
                raise
            shape = [weight.out_features, weight.in_features]
            skipped.append({"layer": name, "shape": shape, "reason": str(error)})
            print(f"{title((shape[0], shape[1]))} {name} is skipped: {error}", file=sys.stderr)
    return layers, skipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for and writes the table."""
    options = _options(arguments)
    shapes = SHAPES[:2] if options.quick else (*SHAPES, BEYOND_CACHES)
    rows, dense_rows = ((1, 32), (5,)) if options.quick else (ROWS, DENSE_ROWS)
    folder = Path(tempfile.mkdtemp(prefix="undense-quick-")) if options.quick else FOLDER
    wanted = {shape: found for shape in shapes if (found := chosen(shape, options.only))}
    if not wanted:
        print(f"no layer is named by {', '.join(options.only)}", file=sys.stderr)
        return 2
    try:
        peaks = measure(options.threads)
        results = KernelResults(peaks, folder)
        for shape, found in wanted.items():
            for part, skipped in _shape_rows(shape, found, rows, dense_rows, peaks, options.quick):
                results.put(part, skipped)
    except UndenseError as error:
        print(error, file=sys.stderr)
        return 2
    if options.only == ["*"]:
        results.drop_older()
    table = folder / "kernels.md" if options.quick else ROOT / "docs" / "kernels.md"
    table.write_text(kernel_table.render(folder), encoding="utf-8")
    print(f"rows in {results.path}, the table in {table}", file=sys.stderr)
    return 0


def _shape_rows(
    shape: Shape,
    wanted: Mapping[str, Maker],
    rows: Sequence[int],
    dense_rows: Sequence[int],
    peaks: Mapping[int, Peak],
    quick: bool,
) -> Iterator[tuple[list[Row], list[Row]]]:
    """The rows of one shape and what was skipped, cell by cell."""
    weight = Weight.random(*shape)
    layers, skipped = build(weight, wanted)
    generator = np.random.default_rng(1)
    x = generator.standard_normal((max(*rows, *dense_rows), shape[1]), np.float32)
    for threads, peak in peaks.items():
        for cell in cells(shape, rows, dense_rows):
            timed = [layer for layer in layers if not cell.dense_only or layer.name in DENSE]
            start = time.perf_counter()
            found = time_cell(timed, cell, x[: cell.rows], threads, peak, quick=quick)
            print(
                f"{title(shape)}, {cell.rows} rows, {threads} threads, weights from "
                f"{cell.weights}: {len(found)} layers in {time.perf_counter() - start:.0f} s",
                file=sys.stderr,
            )
            yield found, skipped


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description="Times the kernels of one layer beside their peers and writes "
        "benchmarks/results/kernels.json and docs/kernels.md.",
    )
    parser.add_argument(
        "--threads",
        type=lambda text: sorted({int(number) for number in text.split(",")}),
        default=sorted({1, usable_cores()}),
        help="numbers of threads, such as 1,2; default: one, and as many as there are cores",
    )
    parser.add_argument(
        "--only",
        metavar="GLOB",
        action="append",
        help="layers to measure, by names such as '1024x1024 undense low_rank{ratio=0.5}'; may be "
        "repeated; other rows of the results stay",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run on two shapes; results go to /tmp"
    )
    options = parser.parse_args(arguments)
    options.only = options.only or ["*"]
    return options


if __name__ == "__main__":
    sys.exit(main())
