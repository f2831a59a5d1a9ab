"""Fixtures: a text compared with a file that a person has read, and an emulated CUDA device."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the files in tests/golden"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden") and os.environ.get("CI") == "true":
        raise pytest.UsageError("--update-golden is for a person who reads the difference, not CI")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDENSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_times() -> Iterator[None]:
    """Times are taken, but not for as long as it takes to know them well."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("whole_run", "bench"):
            patch.setattr(f"undense.backend.kernel_times.{module}._SECONDS", 0.01)
        yield


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another one has fitted."""
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`golden(text)` fails unless `tests/golden/<module>/<test>.txt` holds that text."""
    module = request.path.stem.removeprefix("test_")
    name = request.node.name.removeprefix("test_").replace("[", "-").replace("]", "")
    file = GOLDEN / module / f"{name}.txt"
    update: bool = request.config.getoption("--update-golden")

    def compare(text: str) -> None:
        text = text.rstrip("\n") + "\n"
        if update:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        if not file.exists():
            pytest.fail(f"{file} is missing; run pytest --update-golden and read what it writes")
        expected = file.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), "expected", "actual", lineterm=""
            )
            pytest.fail("\n".join(lines), pytrace=False)

    return compare


@pytest.fixture(scope="session")
def cuda_device() -> Any:
    """`tvm.cuda(0)`, emulated on the host; kernels are compiled for it inside `emulated()`."""
    import cuda_emulation
    import tvm

    try:
        cuda_emulation.load()
    except cuda_emulation.EmulationUnavailable as reason:
        pytest.skip(str(reason))
    return tvm.cuda(0)


@pytest.fixture(scope="session")
def cuda_compiler() -> None:
    """There is an nvcc that knows the architectures of the tests."""
    from cuda_helpers import ARCHITECTURES
    from undense.backend.cuda.nvcc import check_nvcc
    from undense.passes.errors import MissingDependencyError

    try:
        check_nvcc(ARCHITECTURES)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what of the CUDA kernels this run did not cover."""
    skipped = terminalreporter.stats.get("skipped", [])
    waiting = sorted({report.nodeid for report in skipped if "gpu" in report.keywords})
    if not waiting:
        return
    from undense.backend.cuda.nvcc import INTRINSICS

    names = re.findall(
        r"__forceinline__ \w+ (undense_\w+)\(", INTRINSICS.read_text(encoding="utf-8")
    )
    terminalreporter.section("only a GPU covers")
    terminalreporter.line(f"inline PTX, of which the emulation has twins: {', '.join(names)}")
    terminalreporter.line(f"tests that were skipped: {', '.join(waiting)}")
