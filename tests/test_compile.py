"""The whole way on a small model: each engine, replay, refusals, and what a stop leaves behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from safetensors.numpy import load_file
from token_models import TEXT, token_model, token_samples
from undense.passes.errors import (
    FitError,
    LoadError,
    LoweringError,
    PlanError,
    SchemeError,
    TargetError,
    UndenseError,
)
from undense.passes.plan import read_plan
from undense.runtime.verify import verify

SCHEMES = [
    "dense",
    "int_codes",
    "int_codes{bits=4,group=32}",
    "int_codes{bits=6,group=32}",
    "int_codes{bits=3,group=32}",
    "trit_planes{planes=2,group=32}",
    "trit_planes{planes=3,group=32,tied=false}",
    "low_rank{ratio=0.5}",
    "low_rank{ratio=0.5,factor_bits=8}",
    "monarch{ratio=0.5}",
    "int_codes{bits=3,group=32}+residual{rank=8}",
]


@pytest.mark.parametrize("target", ["ort-cpu", "llvm"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_engine_computes_what_the_reference_says(
    target: str, scheme: str, tmp_path: Path
) -> None:
    module = undense.compile(
        token_model(),
        target=target,
        scheme=scheme,
        calibration_dataset=token_samples(),
        output=tmp_path / "m",
    )
    found = verify(module)
    assert found.holds, found.to_json()
    if target == "llvm":
        assert found.execution_error < 1e-5, "nothing is rounded: the error is that of float32"
    else:
        assert (module.report["layer_execution_error"] or 0) < 1e-5
    assert (found.approximation_error < 1e-6) == (scheme == "dense")


@pytest.mark.parametrize(
    "scheme",
    [
        *("int_codes", "int_codes{bits=4,group=32}", "low_rank{ratio=0.5}"),
        "int_codes{bits=4,group=32}+residual{rank=8}",
    ],
)
def test_the_portable_form_holds(scheme: str, tmp_path: Path) -> None:
    module = undense.compile(
        token_model(),
        target="ort-cpu",
        scheme=scheme,
        ignored_scope=["table"],
        calibration_dataset=token_samples(),
        portable=True,
        output=tmp_path / "m",
    )
    assert verify(module).holds
    used = {node.domain for function in ir.load(tmp_path / "m/model.onnx").functions.values()
            for node in function}  # fmt: skip
    assert used == {""}


def test_replaying_a_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    def build(name: str, **options: Any) -> undense.runtime.session.Session:  # type: ignore[name-defined]
        return undense.compile(
            token_model(),
            target="ort-cpu",
            calibration_dataset=token_samples(),
            output=tmp_path / name,
            cache=False,
            **options,
        )

    build("first", scheme="int_codes{bits=4,group=32}")
    build("second", plan=tmp_path / "first" / "plan.json")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
                     for name in ("first", "second"))  # fmt: skip
    assert first == second


def test_a_plan_edited_by_hand_is_carried_out(tmp_path: Path) -> None:
    undense.compile(token_model(), target="ort-cpu", output=tmp_path / "first")
    plan = json.loads((tmp_path / "first/plan.json").read_text())
    for site in plan["sites"]:
        if site["name"] == "first":
            site["scheme"] = "low_rank{rank=5}"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    module = undense.compile(token_model(), target="ort-cpu", plan=tmp_path / "plan.json")
    schemes = {site["name"]: site["scheme"] for site in module.report["sites"]}
    assert schemes["first"] == "low_rank{rank=5}"
    assert schemes["second"].startswith("int_codes")


def test_a_plan_does_not_fit_other_data_seeds_and_versions(tmp_path: Path) -> None:
    undense.compile(
        token_model(), target="ort-cpu", scheme="int_codes", calibration_dataset=token_samples(),
        output=tmp_path / "m",
    )  # fmt: skip
    plan = read_plan(tmp_path / "m/plan.json")
    other = [{"ids": sample["ids"] // 2} for sample in token_samples()]
    for data, changed, named in [
        (other, plan, "calibration data differ"),
        (token_samples(), dataclasses.replace(plan, seed=1), "seeds differ"),
        (
            token_samples(),
            dataclasses.replace(plan, versions={"numpy": "1.0"}),
            "versions of numpy",
        ),
    ]:
        with pytest.raises(PlanError, match=named):
            undense.compile(token_model(), target="ort-cpu", calibration_dataset=data, plan=changed)


def test_the_report_keeps_its_promises(tmp_path: Path) -> None:
    module = undense.compile(token_model(), target="llvm", output=tmp_path / "m")
    report = module.report
    assert [site["name"] for site in report["sites"]] == ["table", "first", "second"]
    assert set(report["sites"][0]) == {
        "name", "in_features", "out_features", "users", "scheme", "bits_per_weight",
        "relative_error", "reason",
    }  # fmt: skip
    assert report["bytes"]["code"] == (tmp_path / "m/module.so").stat().st_size
    weights = load_file(tmp_path / "m/weights.safetensors")
    assert report["bytes"]["after"] == sum(array.nbytes for array in weights.values())
    assert report["bytes"]["before"] == 4 * (100 * 64 + 64 * 96 + 96 + 96 * 40)
    assert any("data-free" in note for note in report["notes"])


def test_weights_stay_packed_on_disk(tmp_path: Path) -> None:
    for target in ("ort-cpu", "llvm"):
        module = undense.compile(
            token_model(),
            target=target,
            scheme="int_codes{bits=4,group=64}",
            output=tmp_path / target,
        )
        stored = (
            tmp_path
            / target
            / ("model.onnx.data" if target == "ort-cpu" else "weights.safetensors")
        )
        codes = (100 * 64 + 64 * 96 + 128 * 40) // 2
        scales = 4 * (100 + 96 + 2 * 40)
        assert stored.stat().st_size < codes + scales + 4 * 96 + 5000, module.report["bytes"]


def test_onnx_can_be_left_out_for_tvm(tmp_path: Path) -> None:
    undense.compile(token_model(), target="llvm", with_onnx=False, output=tmp_path / "m")
    assert not (tmp_path / "m/model.onnx").exists()
    assert undense.load(tmp_path / "m").engine == "tvm"


@pytest.mark.parametrize(
    ("options", "kind", "named"),
    [
        ({"target": "cuda -arch=sm_75"}, TargetError, "sm_80 or later"),
        ({"target": "cuda", "scheme": "int_codes{activations=int8}"}, SchemeError, "GPUs"),
        ({"target": "abacus"}, TargetError, "llvm"),
        ({"target": "llvm", "portable": True}, TargetError, "portable"),
        ({"scheme": "int_codes{activations=float}", "portable": True}, SchemeError, "float"),
        ({"scheme": "low_rank{factor_bits=8}", "portable": True}, SchemeError, "factor_bits=8"),
        ({"scheme": "low_rang"}, SchemeError, "low_rank"),
        ({"scheme": "low_rank{rang=3}"}, SchemeError, "rank"),
        ({"scheme": "monarch{blocks=7,rank=1}"}, FitError, "first|second|table"),
        ({"budget": {"size_ratio": 0.5}}, SchemeError, "budget"),
        ({"ignored_scope": ["nothing*"]}, SchemeError, "nothing"),
        ({"calibration_dataset": []}, UndenseError, "at least one"),
        ({"calibration_dataset": [{"id": np.zeros((1, 2), np.int64)}]}, UndenseError, "ids"),
        ({"plan": "/nonexistent/plan.json"}, PlanError, "plan.json"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(
    options: dict[str, Any], kind: type[UndenseError], named: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=named):
        undense.compile(token_model(), output=tmp_path / "m", **{"target": "ort-cpu", **options})
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_name_the_layer(tmp_path: Path) -> None:
    model = token_model()
    weight = normal(64, 96)
    weight[3, 5] = np.nan
    model.graph.initializers["first"].const_value = ir.tensor(weight, name="first")
    with pytest.raises(FitError, match="first"):
        undense.compile(model, target="ort-cpu", output=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_tvm_lacks_is_named_before_the_work() -> None:
    model = graph(
        "agraph (float[n, 64] x) => (float[n, 64] y) { y = Det2 <axis = 0> (x) }".replace(
            "Det2 <axis = 0>", "Hardmax"
        )
    )
    with pytest.raises(LoweringError, match="Hardmax"):
        undense.compile(model, target="llvm")


def test_a_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        if text == "fit" and 0 < done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        undense.compile(token_model(), target="ort-cpu", output=tmp_path / "m", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_left_as_it_was() -> None:
    model = token_model()
    before = ir.to_proto(model).SerializeToString()
    undense.compile(model, target="ort-cpu")
    assert ir.to_proto(model).SerializeToString() == before


def test_a_folder_that_is_no_artifact_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/diary.txt").write_text("dear diary")
    with pytest.raises(UndenseError, match="m"):
        undense.compile(token_model(), target="ort-cpu", output=tmp_path / "m")
    assert (tmp_path / "m/diary.txt").read_text() == "dear diary"


def test_args_are_for_modules() -> None:
    with pytest.raises(LoadError, match="args"):
        undense.compile(token_model(), (np.zeros((1, 2), np.int64),), target="ort-cpu")


@pytest.mark.parametrize(
    ("target", "kernels"), [("llvm", None), ("ort-cpu", None), ("ort-cpu", "tvm")]
)
@pytest.mark.parametrize("scheme", ["dense", "int_codes{bits=8,group=32}"])
def test_float32_model_runs_in_float16(
    target: str, kernels: str | None, scheme: str, tmp_path: Path
) -> None:
    text = (
        TEXT.replace("TYPE[batch, tokens, 40] y", "float[batch, tokens, 64] y")
        .replace(
            "y = MatMul (c, second)",
            "z = Mul (extra, bias)  d = Add (c, z)  y = MatMul (d, second)",
        )
        .replace(
            "int64[batch, tokens] ids", "int64[batch, tokens] ids, float[batch, tokens, 96] extra"
        )
    )
    model = graph(
        text,
        table=normal(100, 64, seed=1),
        first=normal(64, 96, seed=2),
        bias=normal(96, seed=3),
        second=normal(96, 64, seed=4),
    )
    random = np.random.default_rng(0)
    samples = [
        {
            "ids": random.integers(0, 100, (2, 9)),
            "extra": random.standard_normal((2, 9, 96)).astype(np.float32),
        }
        for _ in range(8)
    ]
    module = undense.compile(
        model, target=target, kernels=kernels, dtype="float16", scheme=scheme,
        calibration_dataset=samples, output=tmp_path / "model.undense",
    )  # fmt: skip
    assert [info.dtype for info in module.inputs] == ["int64", "float16"]
    assert [info.dtype for info in module.outputs] == ["float16"]
    assert module.report["dtype"] == "float16"
    found = verify(module)
    assert found.holds
    assert found.approximation_error < 0.02
    y = module(samples[0]["ids"], samples[0]["extra"].astype(np.float16))
    assert y.dtype == np.float16
    with pytest.raises(UndenseError, match="expected dtype float16, got float32"):
        module(samples[0]["ids"], samples[0]["extra"])


@pytest.mark.parametrize("target", ["llvm", "ort-cpu"])
def test_bfloat16_is_refused_for_cpus(target: str) -> None:
    with pytest.raises(TargetError, match="does not compute in bfloat16; choose dtype float16"):
        undense.compile(token_model(), target=target, dtype="bfloat16")


def test_number_beyond_float16_in_a_sample_is_refused() -> None:
    model = graph("g (float[b,64] x) => (float[b,40] y) { y = MatMul(x, w) }", w=normal(64, 40))
    sample = {"x": np.full((1, 64), 1e5, np.float32)}
    with pytest.raises(UndenseError, match="'x' holds 100000, beyond the range of float16"):
        undense.compile(model, dtype="float16", calibration_dataset=[sample])
