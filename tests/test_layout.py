from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ("frontend", "passes", "backend", "runtime")


def _modules() -> list[Path]:
    own = [path for folder in LIBRARY for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*own, *sorted(ROOT.glob("*.py"))]


def _imports(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, lazily or not."""
    package = ["undense", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *filter(None, [node.module])])
            found.add(name)
            found.update(f"{name}.{alias.name}" for alias in node.names)
    return found


def test_every_package_is_in_the_wheel() -> None:
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    folders = {path.parent for folder in LIBRARY for path in (ROOT / folder).rglob("__init__.py")}
    present = {".".join(["undense", *folder.relative_to(ROOT).parts]) for folder in folders}
    assert listed == present | {"undense"}


def test_files_hold_one_concept() -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in [
            *_modules(),
            *(ROOT / "tests").glob("*.py"),
            *(ROOT / "benchmarks").rglob("*.py"),
        ]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not too_long


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("passes", ("undense.frontend", "undense.backend", "undense.runtime")),
        ("frontend", ("undense.backend", "undense.runtime")),
        ("backend", ("undense.frontend",)),
    ],
)
def test_imports_go_one_way(folder: str, forbidden: tuple[str, ...]) -> None:
    wrong = {
        (path.name, name)
        for path in (ROOT / folder).rglob("*.py")
        for name in _imports(path)
        if name.startswith(forbidden)
    }
    assert not wrong


def test_runtime_imports_only_the_errors() -> None:
    wrong = {
        (path.name, name)
        for path in (ROOT / "runtime").rglob("*.py")
        for name in _imports(path)
        if name.startswith("undense.")
        and not name.startswith(("undense.runtime", "undense.passes.errors"))
        and name != "undense.passes"
    }
    assert not wrong


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("tvm", ("backend", "runtime")),
        (
            "torch",
            (
                "frontend/torch_export.py",
                "passes/linalg.py",
                "passes/threads.py",
                "backend/tuning/cuda/runner",
            ),
        ),
    ],
)
def test_heavy_packages_stay_where_they_belong(package: str, allowed: tuple[str, ...]) -> None:
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in _modules()
        for name in _imports(path)
        if name.split(".")[0] == package and not str(path.relative_to(ROOT)).startswith(allowed)
    }
    assert not wrong


def test_the_facade_and_the_runtime_import_nothing_heavy() -> None:
    code = (
        "import sys, undense, undense.runtime.session, undense.cli, undense.passes;"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxscript', 'tvm', 'onnxruntime', 'rich', 'yaml'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
