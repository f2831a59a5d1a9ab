"""The transformer operators of opset 23 against ONNX Runtime, and against onnx where it differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from relax_models import RNG, check_case, compare, compile_model, normal, parse, run
from undense.backend import relax_build
from undense.backend.reference import run_reference
from undense.backend.target import Target
from undense.passes.errors import LoweringError

SIZES = [(2, 3), (1, 1), (1, 19)]
QKV = "float[b, 4, n, 8] q, float[b, {heads}, m, 8] k, float[b, {heads}, m, 8] v"


def feeds(batch: int, queries: int, keys: int, heads: int = 4, past: int = 0) -> dict[str, Any]:
    return {
        "q": normal(batch, 4, queries, 8),
        "k": normal(batch, heads, keys, 8),
        "v": normal(batch, heads, keys, 8),
        "pk": normal(batch, heads, past, 8),
        "pv": normal(batch, heads, past, 8),
        "mask": normal(queries, past + keys),
        "keep": RNG.random((queries, past + keys)) < 0.7,
    }


FORMS = {
    "plain": ("", ""),
    "scaled": ("scale = 0.2", ""),
    "causal": ("is_causal = 1", ""),
    "mask": ("", ", mask"),
    "kept": ("", ", keep"),
    "capped": ("softcap = 2.0", ""),
    "double": ("softmax_precision = 11", ""),
}


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("form", FORMS)
def test_attention(form: str, heads: int):
    attributes, extra = FORMS[form]
    attributes = f"<{attributes}>" if attributes else ""
    graph = f"""g ({QKV.format(heads=heads)}, float[n, m] mask, bool[n, m] keep) => (float y) {{
        y = Attention {attributes} (q, k, v{extra})
    }}"""
    many = [feeds(b, n, n, heads) for b, n in SIZES] + [feeds(2, 3, 7, heads)]
    for given in many:
        given["keep"][:, 0] = True
    check_case(graph, *many, opset=23, reduction=32)


def test_attention_with_past_and_packed_heads():
    graph = """g (float[b, n, 32] q, float[b, n, 16] k, float[b, n, 16] v,
        float[b, 2, p, 8] pk, float[b, 2, p, 8] pv, float[n, "p + n"] mask
    ) => (float y, float key, float value) {
        y, key, value = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, mask, pk, pv)
    }""".replace('"p + n"', "t")
    many = []
    for batch, queries, past in [(2, 3, 5), (1, 1, 0), (1, 1, 9), (2, 4, 0)]:
        given = feeds(batch, queries, queries, 2, past)
        for name, width in (("q", 32), ("k", 16), ("v", 16)):
            given[name] = normal(batch, queries, width)
        many.append(given)
    check_case(graph, *many, opset=23, reduction=32)


def test_a_row_without_keys_gives_zeros():
    graph = f"""g ({QKV.format(heads=4)}, bool[n, m] keep) => (float y) {{
        y = Attention (q, k, v, keep)
    }}"""
    given = feeds(1, 3, 4)
    given["keep"][1] = False
    (result,) = run(compile_model(parse(graph, 23)), given)
    assert np.isfinite(result).all()
    assert not result[:, :, 1].any()


def test_causal_attention_counts_the_past():
    """ONNX Runtime 1.31 follows the later text of the operator too; onnx's reference decides."""
    graph = """g (float[b, 4, n, 8] q, float[b, 4, n, 8] k, float[b, 4, n, 8] v,
        float[b, 4, p, 8] pk, float[b, 4, p, 8] pv
    ) => (float y, float key, float value) {
        y, key, value = Attention <is_causal = 1> (q, k, v, , pk, pv)
    }"""
    model = parse(graph, 23)
    given = {name: array for name, array in feeds(2, 3, 3, 4, 5).items() if name[0] not in "mk"}
    given["k"] = normal(2, 4, 3, 8)
    expected = run_reference(ir.from_proto(model), given)
    for actual, wanted in zip(run(compile_model(model), given), expected.values(), strict=True):
        compare(actual, wanted.astype(np.float32), 32)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turned", [0, 4])
def test_rotary_embedding(interleaved: int, turned: int):
    half = (turned or 8) // 2
    graph = f"""g (float[b, 4, n, 8] x, float[b, n, 32] z, int64[b, n] i,
        float[20, {half}] c, float[20, {half}] s
    ) => (float y, float w) {{
        y = RotaryEmbedding <interleaved = {interleaved}, rotary_embedding_dim = {turned},
                             num_heads = 4> (x, c, s, i)
        w = RotaryEmbedding <interleaved = {interleaved}, rotary_embedding_dim = {turned},
                             num_heads = 4> (z, c, s, i)
    }}"""
    many = [
        {
            "x": normal(b, 4, n, 8),
            "z": normal(b, n, 32),
            "i": RNG.integers(0, 20, (b, n)),
            "c": normal(20, half),
            "s": normal(20, half),
        }
        for b, n in SIZES
    ]
    check_case(graph, *many, opset=23)


def test_rotary_embedding_without_positions():
    graph = """g (float[b, 4, n, 8] x, float[b, n, 4] c, float[b, n, 4] s) => (float y) {
        y = RotaryEmbedding (x, c, s)
    }"""
    many = [{"x": normal(b, 4, n, 8), "c": normal(b, n, 4), "s": normal(b, n, 4)} for b, n in SIZES]
    check_case(graph, *many, opset=23)


def test_rms_normalization():
    graph = """g (float[b, n, 32] x, float[32] s) => (float y) {
        y = RMSNormalization <epsilon = 1e-6> (x, s)
    }"""
    many = [{"x": normal(b, n, 32), "s": normal(32)} for b, n in SIZES]
    check_case(graph, *many, opset=23, reduction=32)


@pytest.mark.parametrize(
    ("attributes", "inputs", "outputs", "cause"),
    [
        ("qk_matmul_output_mode = 1", "q, k, v", "y, a, c, d", "qk_matmul_output_mode"),
        ("is_causal = 0", "q, k, v, , , , lengths", "y", "nonpad_kv_seqlen"),
    ],
)
def test_what_attention_refuses(attributes: str, inputs: str, outputs: str, cause: str):
    results = ", ".join(f"float {name}" for name in outputs.split(", "))
    graph = f"""g ({QKV.format(heads=4)}, int64[b] lengths) => ({results}) {{
        {outputs} = Attention <{attributes}> ({inputs})
    }}"""
    with pytest.raises(LoweringError, match=cause):
        relax_build.check(ir.from_proto(parse(graph, 24)), Target.parse("llvm"))
