"""The golden fixture itself, run in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TEST = """
def test_it(golden):
    golden("one\\ntwo\\n")
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    conftest = Path(__file__).parent / "conftest.py"
    pytester.makeconftest(conftest.read_text(encoding="utf-8"))
    pytester.makepyfile(test_thing=TEST)
    return pytester


def test_missing_file_fails(folder: pytest.Pytester) -> None:
    result = folder.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*is missing; run pytest --update-golden*"])


def test_update_writes_what_is_then_expected(folder: pytest.Pytester) -> None:
    folder.runpytest("--update-golden").assert_outcomes(passed=1)
    assert (folder.path / "golden/thing/it.txt").read_text() == "one\ntwo\n"
    folder.runpytest().assert_outcomes(passed=1)


def test_difference_is_shown(folder: pytest.Pytester) -> None:
    file = folder.path / "golden/thing/it.txt"
    file.parent.mkdir(parents=True)
    file.write_text("one\nthree\n")
    result = folder.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["-three", "+two"])
    assert file.read_text() == "one\nthree\n"


def test_update_is_refused_in_ci(folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = folder.runpytest("--update-golden")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert not (folder.path / "golden").exists()
