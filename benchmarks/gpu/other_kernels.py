"""Cases of the kernels without weights: norms and attention."""

from __future__ import annotations

from collections.abc import Sequence

from undense.backend.kernels.attention import Attention
from undense.backend.kernels.cuda.attention import attention
from undense.backend.kernels.cuda.attention_arguments import workspace
from undense.backend.kernels.cuda.norm import norm

from .products import Functions
from .runner.spec import Call, Case, Tensor

_EPSILON = 1e-5
_NORM_ROWS = (1, 32, 2048)


def norm_case(features: int, dtype: str) -> tuple[Case, Functions]:
    """`x / √(mean square + ε)`, float32 behind."""
    function = norm(features, _EPSILON, dtype, False).with_attr("global_symbol", "norm")
    case = Case(
        name=f"rms_norm {features} {dtype}",
        kind="norm",
        structure="rms_norm",
        dtype=dtype,
        library="",
        engine="functions",
        weights=(),
        inputs=(Tensor("x", ("rows", features), dtype),),
        calls=(Call("norm", ("x",), (Tensor("y", ("rows", features), "float32"),)),),
        result="y",
        sizes=tuple({"rows": rows} for rows in _NORM_ROWS),
        facts={"epsilon": _EPSILON},
    )
    return case, {"norm": function}


def attention_case(
    heads: int,
    shared: int,
    size: int,
    dtype: str,
    queries: int,
    keys: Sequence[int],
    *,
    causal: bool,
) -> tuple[Case, Functions]:
    """`softmax(Q Kᵀ / √size) V`, keys and values as a cache has them, of several lengths."""
    spec = Attention(
        size=size,
        value_size=size,
        heads=shared,
        group=heads // shared,
        scale=size**-0.5,
        query="rows",
        key="heads",
        value="heads",
        allow_empty=True,
        causal=causal,
    )
    function = attention(spec, dtype).with_attr("global_symbol", "attention")
    cache = ("batch", shared, "keys", size)
    inputs = [
        Tensor("query", ("batch", "queries", heads, size), dtype),
        Tensor("key", cache, dtype),
        Tensor("value", cache, dtype),
    ]
    y = Tensor("y", ("batch", "queries", heads, size), dtype)
    parts = Tensor("parts", workspace(spec), "float32")
    what = "decode" if queries == 1 else "prefill, causal" if causal else "prefill"
    case = Case(
        name=f"attention {what} {heads}/{shared} heads of {size} {dtype}",
        kind="attention",
        structure="attention",
        dtype=dtype,
        library="",
        engine="functions",
        weights=(),
        inputs=tuple(inputs),
        calls=(Call("attention", tuple(tensor.name for tensor in inputs), (y, parts)),),
        result="y",
        sizes=tuple({"batch": 1, "queries": queries, "keys": length} for length in keys),
        facts={"causal": causal, "heads": heads, "size": size},
    )
    return case, {"attention": function}
