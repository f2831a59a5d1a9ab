from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal
from undense.passes.sites import SMALLEST_WEIGHT, Site, find_sites

W, WT = normal(48, 32), normal(32, 48)
SQUARE = normal(32, 32)
CODES = np.arange(32 * 48, dtype=np.int64).reshape(32, 48).astype(np.int8)
PACKED = np.zeros((48, 1, 16), np.uint8)
HALF_X = "g (float16[b,32] x) => (float16[b,48] y)"
X32 = "g (float[b,32] x) => (float[b,48] y)"
IMAGE = "g (float[b,32,h,k] x) => (float[b,c,h2,k2] y)"

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "computed": (f"{X32} {{ v = Mul(w, scale)  y = MatMul(x, v) }}", {"w": WT, "scale": WT}),
    "computed_transposed": (
        f"{X32} {{ v = Add(w, w)  t = Transpose(v)  y = MatMul(x, t) }}",
        {"w": W},
    ),
    "int8_behind_cast": (f"{X32} {{ v = Cast<to=1>(w)  y = MatMul(x, v) }}", {"w": CODES}),
    "int8_scaled": (
        f"{X32} {{ v = Cast<to=1>(w)  u = Mul(v, s)  y = MatMul(x, u) }}",
        {"w": CODES, "s": normal(48)},
    ),
    "dequantize_linear": (
        f"{X32} {{ v = DequantizeLinear(w, s)  y = MatMul(x, v) }}",
        {"w": CODES, "s": np.asarray(0.1, np.float32)},
    ),
    "matmul_nbits": (
        f"{X32} {{ y = com.microsoft.MatMulNBits<K=32, N=48, bits=4, block_size=32>(x, w, s) }}",
        {"w": PACKED, "s": normal(48)},
    ),
    "int8_table": (
        "g (int64[n] x) => (int8[n,48] y) { y = Gather(w, x) }",
        {"w": CODES},
    ),
    "too_small": (
        "g (float[b,8] x) => (float[b,12] y) { y = Gemm<transB=1>(x, w) }",
        {"w": normal(12, 8)},
    ),
    "conv_3x3": (f"{IMAGE} {{ y = Conv(x, w) }}", {"w": normal(16, 32, 3, 3)}),
    "conv_depthwise": (f"{IMAGE} {{ y = Conv<group=32>(x, w) }}", {"w": normal(64, 1, 5, 5)}),
    "conv_grouped": (f"{IMAGE} {{ y = Conv<group=4>(x, w) }}", {"w": normal(256, 8, 1, 1)}),
    "conv_strided": (f"{IMAGE} {{ y = Conv<strides=[2,2]>(x, w) }}", {"w": normal(64, 32, 1, 1)}),
    "conv_padded": (
        f"{IMAGE} {{ y = Conv<pads=[1,0,1,0]>(x, w) }}",
        {"w": normal(64, 32, 1, 1)},
    ),
    "conv_behind_transpose": (
        f"{IMAGE} {{ v = Transpose<perm=[1,0,2,3]>(w)  y = Conv(x, v) }}",
        {"w": normal(32, 64, 1, 1)},
    ),
    "batched": (
        "g (float[b,2,n,32] x) => (float[b,2,n,48] y) { y = MatMul(x, w) }",
        {"w": normal(2, 32, 48)},
    ),
    "batched_left": (
        "g (float[2,32,n] x) => (float[2,48,n] y) { y = MatMul(w, x) }",
        {"w": normal(2, 48, 32)},
    ),
    "two_constants": (
        "g (float[b,48] x) => (float[b,48] y) { v = MatMul(a, w)  y = MatMul(x, v) }",
        {"a": normal(48, 32), "w": WT},
    ),
    "gather_columns": (
        "g (int64[n] x) => (float[48,n] y) { y = Gather<axis=1>(w, x) }",
        {"w": W},
    ),
    "gather_cube": (
        "g (int64[n] x) => (float[n,3,4] y) { y = Gather(w, x) }",
        {"w": normal(100, 3, 4)},
    ),
    "einsum": (
        f'{X32} {{ y = Einsum<equation="bi,io->bo">(x, w) }}',
        {"w": WT},
    ),
    "recurrent": (
        "g (float[s,b,32] x) => (float[s,1,b,32] y) { y = GRU<hidden_size=32>(x, w, r) }",
        {"w": normal(1, 96, 32), "r": normal(1, 96, 32)},
    ),
    "also_added": (
        "g (float[32,32] x) => (float[32,32] y) { h = MatMul(x, w)  y = Add(h, w) }",
        {"w": SQUARE},
    ),
    "subgraph": (
        """g (bool c, float[b,32] x) => (float[b,32] y) {
             y = If (c) <
               then_branch = yes () => (float[b,32] p) { p = MatMul(x, w) },
               else_branch = no () => (float[b,32] q) { q = Identity(x) }
             >
           }""",
        {"w": SQUARE},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, golden: Callable[[str], None]) -> None:
    text, weights = REFUSED[name]
    sites, refusals = find_sites(graph(text, **weights))
    assert sites == []
    assert refusals
    golden("\n".join(f"{refusal.name}: {refusal.reason}" for refusal in refusals))


def _functions(body: str) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20, "lib" : 1]>
    {body}
    <opset_import: ["" : 20], domain: "lib">
    Linear (x, w) => (y) {{ y = MatMul(x, w) }}
    """
    return ir.from_onnx_text(text, initializers=[ir.tensor(SQUARE, name="w")])


def test_weight_passed_to_a_function() -> None:
    model = _functions("g (float[b,32] x) => (float[b,32] y) { y = lib.Linear(x, w) }")
    sites, (refusal,) = find_sites(model)
    assert sites == []
    assert refusal.name == "w"
    assert refusal.reason == "passed to the model-local function lib::Linear"


def test_weight_inside_a_function() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "lib" : 1]>
    g (float[b,2] x) => (float[b,2] y) { y = lib.Linear(x) }
    <opset_import: ["" : 20], domain: "lib">
    Linear (x) => (y) { w = Constant<value=float[2,2] {1, 2, 3, 4}>()  y = MatMul(x, w) }
    """
    sites, (refusal,) = find_sites(ir.from_onnx_text(text))
    assert sites == []
    assert refusal.name == "Linear/w"
    assert refusal.reason == "inside the model-local function lib::Linear"


def test_weight_that_is_an_input_too() -> None:
    model = graph(f"{X32} {{ y = MatMul(x, w) }}", w=WT)
    model.graph.inputs.append(model.graph.initializers["w"])
    sites, (refusal,) = find_sites(model)
    assert sites == []
    assert "is also an input of the model" in refusal.reason


def test_weight_that_is_an_output_too() -> None:
    model = graph(f"{X32} {{ y = MatMul(x, w) }}", w=WT)
    model.graph.outputs.append(model.graph.initializers["w"])
    sites, (refusal,) = find_sites(model)
    assert sites == []
    assert refusal.reason.startswith("also read by an output of the model")


def test_activations_are_no_weights() -> None:
    text = """g (float[b,40,40] x) => (float[b,40,40] y) {
      t = Transpose<perm=[0,2,1]>(x)  y = MatMul(x, t)
    }"""
    assert find_sites(graph(text)) == ([], [])


def test_every_other_matrix_is_named() -> None:
    text = """
    agraph (float[n, 48] x, int64[1] length) => (float[n, 48] y) {
        zero = Constant <value_ints = [0]> ()
        rows = Slice (positions, zero, length, zero)
        y = Add (x, rows)
    }
    """
    sites, refusals = find_sites(graph(text, positions=normal(64, 48)))
    assert not sites
    assert [(refusal.name, refusal.reason) for refusal in refusals] == [
        ("positions", "read by Slice, which is no linear")
    ]


def test_vectors_are_no_weights() -> None:
    text = "g (float[b,2048] x) => (float[b] y) { y = MatMul(x, w) }"
    assert find_sites(graph(text, w=normal(2048))) == ([], [])


def test_unknown_rank_of_what_stands_right() -> None:
    model = graph("g (float[32,n] x) => (float[48,n] y) { y = MatMul(w, x) }", w=W)
    model.graph.inputs[0].shape = None
    sites, (refusal,) = find_sites(model)
    assert sites == []
    assert "infer shapes" in refusal.reason


def test_smallest_weight_is_a_site() -> None:
    def sites_of(rows: int) -> list[Site]:
        model = graph(
            f"g (float[b,{rows}] x) => (float[b,32] y) {{ y = MatMul(x, w) }}", w=normal(rows, 32)
        )
        return find_sites(model)[0]

    assert len(sites_of(SMALLEST_WEIGHT // 32)) == 1
    assert sites_of(SMALLEST_WEIGHT // 32 - 1) == []


def test_several_uses_are_one_site() -> None:
    text = """g (float[b,32] x, float[b,32] z) => (float[b,32] y) {
      h = MatMul(x, w)  v = Identity(w)  k = Gemm(z, v)  y = Add(h, k)
    }"""
    (site,), refusals = find_sites(graph(text, w=SQUARE))
    assert refusals == []
    assert [use.form for use in site.uses] == ["matmul", "gemm"]
    assert [use.x.name for use in site.uses] == ["x", "z"]
    np.testing.assert_array_equal(site.weight(), SQUARE.T)


def test_embedding_tied_to_the_head() -> None:
    text = """g (int64[b,s] i) => (float[b,s,64] y) {
      e = Gather(emb, i)  t = Transpose<perm=[1,0]>(emb)  y = MatMul(e, t)
    }"""
    table = normal(64, 32)
    (site,), refusals = find_sites(graph(text, emb=table))
    assert refusals == []
    assert site.gathered
    assert [use.form for use in site.uses] == ["gather", "matmul"]
    assert (site.out_features, site.in_features) == (64, 32)
    np.testing.assert_array_equal(site.weight(), table)


def test_weight_and_its_transpose_are_two_sites() -> None:
    text = """g (float[b,32] x) => (float[b,32] y) {
      h = MatMul(x, w)  y = Gemm<transB=1>(h, w)
    }"""
    (down, up), refusals = find_sites(graph(text, w=WT))
    assert refusals == []
    assert [down.name, up.name] == ["w", "w.T"]
    assert (up.out_features, up.in_features) == (32, 48)
    np.testing.assert_array_equal(down.weight(), WT.T)
    np.testing.assert_array_equal(up.weight(), WT)


def test_rounded_and_unrounded_uses_are_two_sites() -> None:
    text = """g (float[b,32] x) => (float[b,32] y) {
      a = Cast<to=10>(w)  b2 = Cast<to=1>(a)  h = MatMul(x, w)  y = MatMul(h, b2)
    }"""
    (whole, rounded), _ = find_sites(graph(text, w=SQUARE))
    assert [whole.name, rounded.name] == ["w", "w.2"]
    np.testing.assert_array_equal(rounded.weight().T, SQUARE.astype(np.float16))


def test_widening_is_no_rounding() -> None:
    text = """g (int64[n] i) => (float[n,48] y) {
      e = Gather(w, i)  f = Cast<to=1>(e)  v = Cast<to=1>(w)  t = Transpose(v)  y = MatMul(f, t)
    }"""
    (site,), _ = find_sites(graph(text, w=normal(48, 32, dtype=np.float16)))
    assert [use.dtype for use in site.uses] == [ir.DataType.FLOAT16, ir.DataType.FLOAT]


def test_sites_come_in_order_of_first_use() -> None:
    text = """g (float[b,32] x) => (float[b,32] y) {
      h = MatMul(x, second)  k = MatMul(h, first)  y = MatMul(k, second)
    }"""
    sites, _ = find_sites(graph(text, first=normal(32, 32, seed=1), second=SQUARE))
    assert [site.name for site in sites] == ["second", "first"]


def test_constant_node_is_a_weight() -> None:
    model = graph(f"{X32} {{ y = MatMul(x, w) }}", w=WT)
    node = ir.node("Constant", [], {"value": ir.tensor(WT)})
    model.graph.insert_before(model.graph[0], node)
    model.graph[1].replace_input_with(1, node.outputs[0])
    del model.graph.initializers["w"]
    node.outputs[0].name = "folded"
    (site,), _ = find_sites(model)
    assert site.name == "folded"
    np.testing.assert_array_equal(site.weight(), WT.T)


def test_external_weight_is_not_kept(tmp_path: Path) -> None:
    model = graph(f"{X32} {{ y = MatMul(x, w) }}", w=WT)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "m.onnx")
    (site,), _ = find_sites(loaded)
    tensor = site.value.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    first = site.weight()
    assert tensor.raw is None, "the file is still mapped"
    first[:] = 0
    np.testing.assert_array_equal(site.weight(), WT.T)


def test_weight_is_the_callers_own() -> None:
    model = graph(f"{X32} {{ y = Gemm<transB=1>(x, w) }}", w=W.copy())
    (site,), _ = find_sites(model)
    site.weight()[:] = 0
    np.testing.assert_array_equal(site.weight(), W)


def test_mapping_that_was_open_stays_open(tmp_path: Path) -> None:
    model = graph(f"{X32} {{ y = MatMul(x, w) }}", w=WT)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    (site,), _ = find_sites(ir.load(tmp_path / "m.onnx"))
    assert site.value.const_value is not None
    view = site.value.const_value.numpy()
    site.weight()
    np.testing.assert_array_equal(view, WT)
