"""The exact rewrites together, and in `compile`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal, outputs
from helpers import assert_close
from undense.cli import main
from undense.passes.check import check
from undense.passes.errors import SchemeError
from undense.passes.lossless import DEFAULT, LOSSLESS, apply_lossless, chosen
from undense.passes.sites import find_sites
from undense.runtime.verify import verify

TEXT = """g (int64[b,t] i) => (float[b,t,32] y) {
    e = Gather(table, i)  x = MatMul(e, first)
    n = LayerNormalization(x, s1, h1)
    k = MatMul(n, left)  v = MatMul(n, right)  m = Mul(k, v)
    d = MatMul(m, down)  f = Mul(d, scale)  r = Add(x, f)
    y = LayerNormalization(r, s2)
}"""
WEIGHTS = {
    "table": normal(50, 64),
    "first": normal(64, 32, seed=1),
    "s1": normal(32, seed=2),
    "h1": np.zeros(32, np.float32),
    "left": normal(32, 48, seed=3),
    "right": normal(32, 48, seed=4),
    "down": normal(48, 32, seed=5),
    "scale": normal(32, seed=6),
    "s2": normal(32, seed=7),
}
IDS = np.array([[3, 49, 0, 7, 12]])


def model() -> ir.Model:
    return graph(TEXT, **WEIGHTS)


def test_every_rewrite_together_keeps_the_outputs() -> None:
    rewritten = model()
    seen = []
    names = chosen(tuple(LOSSLESS))
    journal = apply_lossless(
        rewritten, names, lambda name, moment, model: (seen.append((name, moment)), check(model))
    )
    assert seen == [(name, moment) for name in LOSSLESS for moment in ("before", "after")]
    assert [sentence.split(":")[0] for sentence in journal.done] == [
        "absorbed scales of outputs",
        "LayerNorm → RMSNorm",
        "fused siblings",
    ]
    assert_close(outputs(rewritten, i=IDS)["y"], outputs(model(), i=IDS)["y"], reduction=64)


def test_names_run_in_the_order_of_the_passes() -> None:
    assert chosen(True) == DEFAULT
    assert chosen(False) == ()
    assert chosen(["fuse_siblings", "merge_linears"]) == ("merge_linears", "fuse_siblings")


def test_unknown_name() -> None:
    with pytest.raises(SchemeError, match=r"'fold' is not known; known are merge_linears"):
        chosen(["fold"])
    with pytest.raises(SchemeError, match="'fold' is not known"):
        undense.compile(model(), lossless=["fold"])


@pytest.mark.parametrize(
    ("target", "lossless"),
    [
        ("ort-cpu", True),
        ("ort-cpu", False),
        ("ort-cpu", tuple(LOSSLESS)),
        ("llvm", tuple(LOSSLESS)),
    ],
    ids=["default", "none", "all", "tvm"],
)
def test_compiled(target: str, lossless: bool | Sequence[str], tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"i": np.arange(start, start + 40)[None]} for start in range(9)
    ]
    module = undense.compile(
        model(),
        target=target,
        scheme="low_rank{ratio=1.0}" if target == "ort-cpu" else "dense",
        calibration_dataset=samples,
        lossless=lossless,
        output=tmp_path / "out",
    )
    assert verify(module).holds
    assert verify(module).holds
    notes = " ".join(module.report["notes"])
    assert ("absorbed scales of outputs" in notes) == (lossless is not False)
    assert ("LayerNorm → RMSNorm" in notes) == isinstance(lossless, tuple)
    sites = {site["name"] for site in module.report["sites"]}
    assert ("left.fused" in sites) == isinstance(lossless, tuple)


def test_names_of_sites_stay_by_default() -> None:
    rewritten = model()
    apply_lossless(rewritten)
    before, after = ([site.name for site in find_sites(found)[0]] for found in (model(), rewritten))
    assert before == after


def test_sizes_count_what_the_model_came_with(tmp_path: Path) -> None:
    text = "g (float[b,64] x) => (float[b,64] y) { h = MatMul(x, one)  y = MatMul(h, two) }"
    merged = graph(text, one=normal(64, 96), two=normal(96, 64, seed=1))
    module = undense.compile(merged, target="ort-cpu", scheme="dense", output=tmp_path / "out")
    assert module.report["bytes"]["before"] == 2 * 4 * 64 * 96
    assert [site["name"] for site in module.report["sites"]] == ["two.merged"]
    assert module.artifact.manifest.engine == "ort"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "model.onnx", str(tmp_path / "out")
    ir.save(model(), file)
    common = ["compile", str(file), "-o", out, "--target", "ort-cpu", "--scheme", "dense", "--json"]
    assert main([*common, "--no-lossless"]) == 0
    assert "absorbed" not in capsys.readouterr().out
    assert main([*common, "--lossless", "fuse_siblings"]) == 0
    assert "fused siblings: left, right" in capsys.readouterr().out
    assert main([*common, "--lossless", "fold"]) == 2
    assert "exact rewrite 'fold' is not known" in capsys.readouterr().err
