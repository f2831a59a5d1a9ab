"""`undense cache`, and the options that say where results are kept and where fits run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal
from undense.cli import main
from undense.passes.cache import Cache


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    cache = Cache(tmp_path / "kept")
    cache.put("fit", {"i": 1}, {}, {"a": np.zeros(1000)})
    cache.put("fit", {"i": 2}, {}, {"a": np.zeros(1000)})
    cache.put("stats", {}, {})
    return cache.folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    text = "agraph (float[batch, 64] x) => (float[batch, 96] y) { y = MatMul (x, w) }"
    ir.save(graph(text, w=normal(64, 96)), path)
    return path


def _json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_verb_lists_kinds(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "cache", "--cache", kept)
    sizes = {entry.path: entry.bytes for entry in Cache(kept).entries()}
    assert found["folder"] == str(kept)
    assert found["limit_bytes"] == 10 * 2**30
    assert found["bytes"] == sum(sizes.values()) > 16_000
    assert {kind: row["entries"] for kind, row in found["kinds"].items()} == {"fit": 2, "stats": 1}
    assert main(["cache", "--cache", str(kept)]) == 0
    assert "kinds.fit.entries" in capsys.readouterr().out


def test_the_verb_clears_a_kind_or_all(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "cache", "--cache", kept, "--clear", "fit")
    assert found["removed"]["fit"]["entries"] == 2
    assert list(found["kinds"]) == ["stats"]
    assert main(["cache", "--cache", str(kept), "--clear", "fits"]) == 2
    assert "it has no entries of kind 'fits'; kinds: stats" in capsys.readouterr().err
    assert _json(capsys, "cache", "--cache", kept, "--clear")["kinds"] == {}


def test_what_cannot_be_removed_is_told(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError))
    assert main(["cache", "--cache", str(kept), "--clear"]) == 2
    assert f"{kept}: 3 of 3 entries cannot be removed" in capsys.readouterr().err


def test_a_cache_that_is_not_there_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _json(capsys, "cache", "--cache", tmp_path / "none")["kinds"] == {}
    assert not (tmp_path / "none").exists()


def _compile(model: Path, output: Path, *options: str) -> int:
    arguments = ["--target", "ort-cpu", "--scheme", "int_codes", "--quiet"]
    return main(["compile", str(model), "-o", str(output), *arguments, *options])


def test_compile_keeps_fits_where_it_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path / "default"))
    assert _compile(model, tmp_path / "a", "--no-cache") == 0
    assert not (tmp_path / "default").exists()
    assert _compile(model, tmp_path / "b") == 0
    assert [entry.kind for entry in Cache().entries()] == ["fit"]
    assert _compile(model, tmp_path / "c", "--cache", str(tmp_path / "named")) == 0
    assert [entry.kind for entry in Cache(tmp_path / "named").entries()] == ["fit"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cache", "x", "--no-cache"), "give one of them"),
        (("--scheduler", "nonsense://x"), "scheduler nonsense://x: it does not answer"),
    ],
)
def test_bad_options_are_one_sentence(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    if "--scheduler" in options:
        pytest.importorskip("distributed")
    assert _compile(model, tmp_path / "out", *options) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("undense: ")
    assert said in captured
    assert len(captured.splitlines()) == 1
