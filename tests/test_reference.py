"""The numpy reference: float64 throughout, node by node, structures by their own reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal, outputs, replaced
from helpers import assert_close
from undense.backend.expected import FLOOR, expected_outputs
from undense.backend.layer_check import check_layers
from undense.backend.onnx_runtime import save
from undense.backend.reference import run_reference
from undense.passes.errors import LoweringError


def _replaced(scheme: str) -> ir.Model:
    text = "agraph (float[n, 48] x) => (float[n, 40] y) { a = MatMul (x, w) y = Relu (a) }"
    return replaced(graph(text, w=normal(48, 40)), scheme)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y = LayerNormalization (x, s)", 20),
        ("y = Softmax <axis = -1> (x)", 20),
        ("y = Gelu (x)", 20),
        ('y = Gelu <approximate = "tanh"> (x)', 20),
        ("c = Constant <value = float {0.3}> () y = Mul (x, c)", 20),
        ("c = Constant <value_float = 0.3> () y = Mul (x, c)", 20),
        ("d = Cast <to = 1> (x) y = Erf (d)", 20),
        ("y = RMSNormalization (x, s)", 23),
        ("a = Mul (x, x) b = ReduceMean <keepdims = 1> (a) c = Sqrt (b) y = Div (x, c)", 20),
    ],
)
def test_standard_operators_run_in_float64(body: str, opset: int) -> None:
    scale = {"s": normal(48, seed=3)} if ", s)" in body else {}
    model = graph(f"agraph (float[n, 48] x) => (float[n, 48] y) {{ {body} }}", opset=opset, **scale)
    x = normal(5, 48, seed=1)
    exact, single = run_reference(model, {"x": x}), run_reference(model, {"x": x}, np.float32)
    assert exact["y"].dtype == np.float64
    assert single["y"].dtype == np.float32
    assert_close(outputs(model, x=x)["y"], exact["y"], reduction=48)
    assert not np.array_equal(single["y"].astype(np.float64), exact["y"])


def test_a_branch_reads_what_it_captures() -> None:
    text = """
    agraph (float[n, 4] x, bool flag) => (float[n, 4] y) {
        z = Mul (x, x)
        y = If (flag) <
            then_branch = yes () => (float[n, 4] a) { a = Add (z, k) },
            else_branch = no () => (float[n, 4] b) { b = Sub (z, x) }
        >
    }
    """
    model = graph(text, k=np.full((4,), 2.0, np.float32))
    x = normal(3, 4)
    for flag, wanted in (
        (True, x.astype(np.float64) ** 2 + 2),
        (False, x.astype(np.float64) ** 2 - x),
    ):
        found = run_reference(model, {"x": x, "flag": np.array(flag)})["y"]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("scheme", ["low_rank{rank=9}", "int_codes{bits=4,group=16}"])
def test_structured_nodes_use_their_own_reference(scheme: str) -> None:
    model, x = _replaced(scheme), normal(6, 48, seed=2)
    assert_close(outputs(model, x=x)["y"], run_reference(model, {"x": x})["y"], reduction=48)


def test_the_effect_of_rounding_activations_is_told_apart() -> None:
    model = _replaced("int_codes{bits=8,group=16,activations=int8}")
    x = normal(6, 48, seed=2)
    found = expected_outputs(model, [{"x": x}])
    assert found.rounding_effect is not None
    assert 1e-4 < found.rounding_effect < 0.05
    assert found.tolerance["y"] == pytest.approx(2 * found.rounding_effect)
    exact = expected_outputs(_replaced("int_codes{bits=8,group=16,activations=float}"), [{"x": x}])
    assert exact.rounding_effect is None
    assert FLOOR <= exact.tolerance["y"] < 1e-5


def test_each_layer_is_held_to_float32(tmp_path: Path) -> None:
    model, sample = _replaced("int_codes{bits=8,group=16,activations=int8}"), normal(6, 48, seed=2)
    save(model, tmp_path)
    error = check_layers(model, tmp_path, [{"x": sample}])
    assert error is not None
    assert error < 1e-5
    assert not (tmp_path / "layers.model.onnx").exists()
    wrong = _replaced("int_codes{bits=8,group=32,activations=int8}")
    with pytest.raises(LoweringError, match="w: ONNX Runtime computes"):
        check_layers(wrong, tmp_path, [{"x": sample}])


def test_an_operator_without_reference_is_named() -> None:
    text = "agraph (float[n, 4] x) => (float[n, 4] y) { y = com.microsoft.QuickGelu (x) }"
    with pytest.raises(LoweringError, match=r"com\.microsoft\.QuickGelu"):
        run_reference(graph(text), {"x": normal(2, 4)})
