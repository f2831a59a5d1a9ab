"""Attention and RotaryEmbedding of opset 23."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from ..kernels.attention import Attention, Layout, attention
from ..kernels.cuda import attention as cuda_attention
from ..kernels.cuda.attention_arguments import workspace
from ..kernels.gpu import on_gpu
from ..kernels.mathematics import dtype_of, tanh
from ..kernels.targets import float_tiling
from .builder import Builder
from .dimensions import extent
from .indexing import wrap
from .matmul import batched
from .node import Lowering, Node
from .reduction import softmax
from .shape import concatenate
from .values import HALVES, SUPPORTED, Dim, Value, like

_RAW, _AFTER_SOFTMAX = 0, 3


def _heads(builder: Builder, node: Node, value: Value, attribute: str) -> Value:
    """`[batch, heads, sequence, size]` from that or from `[batch, sequence, heads * size]`."""
    if value.rank == 4:
        return value
    heads = int(node.attribute(attribute, 0))
    if not heads:
        raise node.refusal(f"attribute {attribute} is missing")
    batch, sequence, width = value.shape
    split = builder.reshape(value, [batch, sequence, heads, width // heads])
    return builder.transpose(split, [0, 2, 1, 3])


def _attention(builder: Builder, node: Node) -> list[Value]:
    if node.get(6) is not None:
        raise node.refusal("nonpad_kv_seqlen is not covered")
    if any(node.attribute(f"{side}_window_size", -1) >= 0 for side in ("left", "right")):
        raise node.refusal("sliding windows are not covered")
    mode = node.attribute("qk_matmul_output_mode", 0)
    if node.used(3) and mode not in (_RAW, _AFTER_SOFTMAX):
        raise node.refusal(f"qk_matmul_output_mode {mode} is not covered")
    query = _heads(builder, node, node[0], "q_num_heads")
    key = _heads(builder, node, node[1], "kv_num_heads")
    value = _heads(builder, node, node[2], "kv_num_heads")
    past_key, past_value = node.get(4), node.get(5)
    past: Dim = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key = concatenate(builder, [past_key, key], 2)
        value = concatenate(builder, [past_value, value], 2)
    heads, shared = query.shape[1], key.shape[1]
    if not isinstance(heads, int) or not isinstance(shared, int) or heads % shared:
        raise node.refusal(f"{heads} heads cannot share {shared} key and value heads")
    scale = _scale(node, query.shape[3])
    plain = not node.attribute("softcap", 0.0) and not node.used(3)
    if plain and node.attribute("softmax_precision") in (None, ir.DataType.FLOAT):
        queries, keys = query.shape[2], key.shape[2]
        causal = bool(node.attribute("is_causal", 0))
        known_causal = causal and on_gpu() and builder.same(keys, past + queries)
        mask = _mask(builder, node, keys)
        if causal and not known_causal:
            mask = _causal_mask(builder, mask, queries, keys, past)
        fused = fused_attention(
            builder, query, key, value, scale, mask, allow_empty=True, causal=known_causal
        )
        if fused is not None:
            return [_joined(builder, node, fused), key, value, fused]
    group = heads // shared
    raw = batched(builder, query, builder.transpose(key, [0, 1, 3, 2]), group=group)
    scores = _scored(builder, node, raw, query.shape[3], past)
    weights = softmax(builder, scores, 3, allow_empty=True)
    weights = builder.cast(weights, query.dtype)
    result = batched(builder, weights, value, group=group)
    weighted = weights if mode == _AFTER_SOFTMAX else raw
    return [_joined(builder, node, result), key, value, weighted]


def _joined(builder: Builder, node: Node, result: Value) -> Value:
    """The heads side by side where the inputs have them so."""
    if node[0].rank != 3:
        return result
    batch, heads, sequence, size = result.shape
    result = builder.transpose(result, [0, 2, 1, 3])
    return builder.reshape(result, [batch, sequence, heads * size])


def _scale(node: Node, head_size: Dim) -> float:
    scale = node.attribute("scale")
    if scale is not None:
        return float(scale)
    if not isinstance(head_size, int):
        raise node.refusal("the size of a head is symbolic")
    return 1.0 / math.sqrt(head_size)


def fused_attention(
    builder: Builder,
    query: Value,
    key: Value,
    value: Value,
    scale: float,
    mask: Value | None,
    *,
    allow_empty: bool,
    causal: bool = False,
) -> Value | None:
    """The attention of `[batch, heads, length, size]` by one kernel; None where it has none.

    Args:
        builder: of the call.
        query: with a multiple of the heads of keys and values.
        key: as many as values.
        value: what is weighed.
        scale: of the products.
        mask: broadcast over the scores: true is kept, or added.
        allow_empty: whether a row of nothing but −inf gives zeros.
        causal: see `Attention`.
    """
    wanted = query.dtype
    tensors = tuple(builder.multiplied(v) for v in (query, key, value))
    query, key, value = tensors
    heads, sizes = [v.shape[1] for v in tensors], [v.shape[3] for v in tensors]
    if not all(isinstance(number, int) for number in (*heads, *sizes)):
        return None
    if any(v.rank != 4 or v.dtype not in ("float32", *HALVES) for v in tensors):
        return None
    joint = heads[1] == heads[2] and heads[0] % heads[1] == 0 and sizes[0] == sizes[1]
    same_batch = all(builder.same(query.shape[0], v.shape[0]) for v in (key, value))
    if not joint or not same_batch or not builder.same(key.shape[2], value.shape[2]):
        return None
    scores = (query.shape[0], heads[0], query.shape[2], key.shape[2])
    if mask is not None and mask.dtype in HALVES:
        mask = builder.cast(mask, "float32")
    axes = None if mask is None else _mask_axes(builder, mask, scores)
    if mask is not None and (axes is None or mask.dtype not in ("bool", "float32", *HALVES)):
        return None
    places = [_place(v) for v in tensors]
    spec = Attention(
        size=sizes[0],
        value_size=sizes[2],
        heads=heads[1],
        group=heads[0] // heads[1],
        scale=scale,
        query=places[0][0],
        key=places[1][0],
        value=places[2][0],
        mask=axes,
        mask_dtype="float32" if mask is None else mask.dtype,
        allow_empty=allow_empty,
        causal=causal,
    )
    if not (cuda_attention.fits(spec, query.dtype) if on_gpu() else spec.fits):
        return None
    given = [place[1] for place in places]
    if mask is not None:
        given.append(builder.reshape(mask, [*[1] * (4 - mask.rank), *mask.shape]))
    shape = [scores[0], scores[2], heads[0], sizes[2]]
    if on_gpu():
        function, own = cuda_attention.attention(spec, query.dtype), workspace(spec)
    else:
        function, own = attention(spec, float_tiling()), None
    result = builder.call("attention", function, shape, *given, dtype=query.dtype, workspace=own)
    return builder.cast(builder.transpose(result, [0, 2, 1, 3]), wanted)


def _place(value: Value) -> tuple[Layout, Value]:
    """The layout of a value, before its heads were brought forward if they were."""
    if value.permuted is not None and value.permuted[1] == (0, 2, 1, 3):
        return "rows", value.permuted[0]
    return "heads", value


def _mask_axes(
    builder: Builder, mask: Value, scores: Sequence[Dim]
) -> tuple[bool, bool, bool, bool] | None:
    """Which axes of the scores the mask has."""
    if mask.rank > 4:
        return None
    there = [False] * 4
    for axis, dim in zip(range(4 - mask.rank, 4), mask.shape, strict=True):
        if builder.same(dim, 1):
            continue
        if not builder.same(dim, scores[axis]):
            return None
        there[axis] = True
    return there[0], there[1], there[2], there[3]


def _mask(builder: Builder, node: Node, keys: Dim) -> Value | None:
    """The mask of the node, if it has one."""
    mask = node.get(3)
    if mask is not None:
        builder.require_equal(mask.shape[-1], keys)
    return mask


def _causal_mask(builder: Builder, mask: Value | None, queries: Dim, keys: Dim, past: Dim) -> Value:
    """A mask and that of causality in one."""

    def compute(queries: Any, keys: Any, past: Any) -> Any:
        shape = [extent(queries), extent(keys)]
        return te.compute(shape, lambda query, key: key <= query + past, name="causal")

    causal = builder.te("causal_mask", compute, queries, keys, past)
    if mask is None:
        return causal
    if mask.dtype == "bool":
        return builder.elementwise("masks", lambda a, b: tirx.all(a, b), mask, causal)
    return builder.elementwise(
        "masks", lambda m, c: tirx.Select(c, m, te.min_value(dtype_of(m))), mask, causal
    )


def _scored(builder: Builder, node: Node, raw: Value, head_size: Dim, past: Dim) -> Value:
    """The products scaled, capped, masked and in the precision of the softmax."""
    scale = _scale(node, head_size)
    cap = float(node.attribute("softcap", 0.0))

    def scaled(x: Any) -> Any:
        x = x * like(scale, x)
        return x if cap <= 0 else tanh(x / like(cap, x)) * like(cap, x)

    scores = builder.elementwise("scaled", scaled, raw)
    mask = node.get(3)
    if mask is not None:
        scores = _masked(builder, node, scores, mask)
    if node.attribute("is_causal", 0):
        scores = _causal(builder, scores, past)
    precision = node.attribute("softmax_precision")
    return scores if precision is None else builder.cast(scores, SUPPORTED[precision])


def _masked(builder: Builder, node: Node, scores: Value, mask: Value) -> Value:
    builder.require_equal(mask.shape[-1], scores.shape[-1])
    if mask.dtype == "bool":
        return builder.elementwise(
            "masked", lambda m, x: tirx.Select(m, x, te.min_value(dtype_of(x))), mask, scores
        )
    return builder.elementwise("masked", lambda x, m: x + m, scores, mask)


def _causal(builder: Builder, scores: Value, past: Dim) -> Value:
    """Scores of keys after the query set to the lowest number; `past` keys precede the first."""

    def compute(x: Any, past: Any) -> Any:
        def entry(*index: Any) -> Any:
            *_, query, key = index
            return tirx.Select(key <= query + past, x(*index), te.min_value(dtype_of(x)))

        return te.compute(x.shape, entry, name="causal")

    return builder.te("causal", compute, scores, past)


def _rotary(builder: Builder, node: Node) -> Value:
    value = node[0]
    if value.rank == 3:
        heads = int(node.attribute("num_heads", 0))
        if not heads:
            raise node.refusal("attribute num_heads is missing")
        batch, sequence, width = value.shape
        split = builder.reshape(value, [batch, sequence, heads, width // heads])
        turned = _rotated(builder, node, split, sequence_axis=1)
        return builder.reshape(turned, [batch, sequence, width])
    return _rotated(builder, node, value, sequence_axis=2)


def _rotated(builder: Builder, node: Node, value: Value, sequence_axis: int) -> Value:
    """Pairs of entries turned by the angles of their position."""
    cosine, sine, positions = node[1], node[2], node.get(3)
    size = value.shape[3]
    turned = int(node.attribute("rotary_embedding_dim", 0)) or size
    if not isinstance(turned, int):
        raise node.refusal("the size of a head is symbolic")
    interleaved, half = bool(node.attribute("interleaved", 0)), turned // 2

    def compute(x: Any, cosine: Any, sine: Any, positions: Any) -> Any:
        def entry(*index: Any) -> Any:
            batch, place, lane = index[0], index[sequence_axis], index[3]
            if interleaved:
                pair, second = tirx.floordiv(lane, 2), tirx.EQ(tirx.floormod(lane, 2), extent(1))
                partner = tirx.Select(second, lane - 1, lane + 1)
            else:
                pair, second = tirx.floormod(lane, half), lane >= half
                partner = tirx.Select(second, lane - half, lane + half)
            if turned != size:
                pair = te.min(pair, half - 1)
                partner = te.min(partner, turned - 1)
            at = [batch, place, pair]
            if positions is not None:
                at = [wrap(positions(batch, place), cosine.shape[0]), pair]
            c, s = cosine(*at), sine(*at)
            other = x(*index[:3], partner)
            result = x(*index) * c + tirx.Select(second, other * s, -(other * s))
            return result if turned == size else tirx.Select(lane < turned, result, x(*index))

        return te.compute(x.shape, entry, name="rotary")

    return builder.te("rotary", compute, value, cosine, sine, positions)


LOWERINGS: dict[str, Lowering] = {"Attention": _attention, "RotaryEmbedding": _rotary}
