"""Compiles all cases and packs them with the runner and TVM's runtime: nothing else is needed."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from undense.backend.cuda.nvcc import check_nvcc
from undense.backend.target import Target
from undense.passes.errors import UndenseError
from undense.runtime.hardware import usable_cores

from ..results import source_hash
from .cases import Recipe, chosen
from .runner.spec import Case, write_cases
from .runtime import versions, write_runtime

NAME = "undense-gpu"
"""Of the folder in the bundle."""

_ENTRY = "run.py"


def write_bundle(folder: Path, recipes: Sequence[Recipe], target: Target, python: str) -> None:
    """Fills a folder with everything that a bundle holds."""
    (folder / "cases").mkdir(parents=True)
    cases = compiled(recipes, target, folder / "cases")
    about = {"target": str(target), "python": python, "sources": source_hash(), **versions()}
    write_cases(folder / "cases.json", cases, about)
    here = Path(__file__).parent
    shutil.copytree(
        here / "runner", folder / "runner", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(here / "entry.py", folder / _ENTRY)
    write_runtime(folder / "runtime", python)


def compiled(recipes: Sequence[Recipe], target: Target, folder: Path) -> list[Case]:
    """The cases of recipes, whose libraries are written to a folder by all cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), mp_context=context) as pool:
        jobs = [
            pool.submit(compile_one, recipe, target, folder, f"{number:02d}.so")
            for number, recipe in enumerate(recipes)
        ]
        return [job.result() for job in jobs]


def compile_one(recipe: Recipe, target: Target, folder: Path, library: str) -> Case:
    """One case, with a line that says how long it took."""
    start = time.perf_counter()
    case = recipe.compile(target, folder, library)
    if case.name != recipe.name:
        raise ValueError(f"the recipe of {recipe.name!r} makes {case.name!r}")
    print(f"{case.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return case


def pack(folder: Path, bundle: Path) -> None:
    """The folder as one compressed file."""
    with tarfile.open(bundle, "w:gz") as archive:
        archive.add(folder, arcname=NAME)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the bundle that is asked for."""
    options = _options(arguments)
    recipes = chosen(options.only)
    if not recipes:
        print(f"no case is named by {', '.join(options.only)}", file=sys.stderr)
        return 2
    try:
        target = Target.parse(f"cuda -arch={options.arch}")
        check_nvcc(target.architectures)
        with tempfile.TemporaryDirectory(prefix="undense-bundle-") as scratch:
            write_bundle(Path(scratch) / NAME, recipes, target, options.python)
            pack(Path(scratch) / NAME, options.output)
    except UndenseError as error:
        print(error, file=sys.stderr)
        return 2
    size = options.output.stat().st_size / 2**20
    print(f"{options.output}: {len(recipes)} cases, {size:.1f} MB", file=sys.stderr)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.build", description=__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("undense-gpu.tar.gz"), help="the bundle to write"
    )
    parser.add_argument(
        "-arch", "--arch", default="sm_90", help="architectures to compile for; default sm_90"
    )
    parser.add_argument(
        "--python", default="3.12", help="version of Python on the GPU host; default 3.12"
    )
    parser.add_argument(
        "--only", metavar="GLOB", action="append", help="cases to compile; may be repeated"
    )
    options = parser.parse_args(arguments)
    options.only = options.only or ["*"]
    return options


if __name__ == "__main__":
    sys.exit(main())
