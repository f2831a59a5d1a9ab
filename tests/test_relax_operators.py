"""Every family of operators against ONNX Runtime, with dimensions that stay symbolic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from relax_models import check_case, ints, lines, normal

UNARY = [
    *("Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", 'Gelu <approximate = "tanh">'),
    *("HardSigmoid", "HardSwish", "LeakyRelu", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid"),
    *("Sign", "Sin", "Softplus", "Softsign", "Tanh", "Identity", "LeakyRelu <alpha = 0.2>"),
    "HardSigmoid <alpha = 0.3, beta = 0.4>",
]


def test_unary():
    outputs, body = lines(UNARY, "{}(x)")
    x = np.concatenate([normal(40) * 4, [0.0, -0.0, 1e-3, -1e-3, 0.5, 1.5, 2.5, -30, 30]])
    feeds = {"x": x.astype(np.float32)}
    check_case(f"g (float[n] x) => ({outputs}) {{ {body} }}", feeds)


def test_unary_of_positive_numbers_and_of_what_is_no_number():
    graph = """g (float[n] x) => (float a, float b, bool c, bool d) {
        a = Sqrt(x)  b = Log(x)  c = IsNaN(x)  d = Not(c)
    }"""
    feeds = {"x": np.array([1e-6, 0.3, 7, 0, np.inf, np.nan], np.float32)}
    check_case(graph, feeds)


BINARY = ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu"]


def test_binary_broadcasts():
    outputs, body = lines(BINARY, "{}(x, z)")
    graph = f"g (float[b, n, 4] x, float[n, 1] z) => ({outputs}) {{ {body} }}"
    for_all = [{"x": np.abs(normal(b, n, 4)), "z": normal(n, 1) + 4} for b, n in [(2, 3), (1, 1)]]
    check_case(graph, *for_all)


def test_unequal_symbols_broadcast_as_they_turn_out():
    graph = "g (float[a, 3] x, float[b, 3] z) => (float y) { y = Add(x, z) }"
    check_case(
        graph,
        {"x": normal(4, 3), "z": normal(4, 3)},
        {"x": normal(1, 3), "z": normal(4, 3)},
        {"x": normal(4, 3), "z": normal(1, 3)},
    )


@pytest.mark.parametrize("dtype", ["int64", "int32", "float"])
def test_comparisons_and_logic(dtype: str):
    graph = f"""g ({dtype}[n] x, {dtype}[n] z) => (
        bool a, bool b, bool c, bool d, bool e, bool f, bool h, bool i, {dtype} j
    ) {{
        a = Equal(x, z)  b = Less(x, z)  c = LessOrEqual(x, z)  d = Greater(x, z)
        e = GreaterOrEqual(x, z)  f = And(b, e)  h = Or(b, a)  i = Xor(a, c)  j = Where(b, x, z)
    }}"""
    kind = np.dtype({"float": "float32"}.get(dtype, dtype))
    check_case(graph, {"x": ints(4, 30).astype(kind), "z": ints(4, 30).astype(kind)})


def test_integer_arithmetic_rounds_as_onnx_does():
    graph = """g (int64[n] x, int64[n] z) => (int64 a, int64 b, int64 c, int64 d, int64 e) {
        a = Div(x, z)  b = Mod(x, z)  c = Mod <fmod = 1> (x, z)  d = Neg(x)  e = Abs(x)
    }"""
    check_case(graph, {"x": ints(20, 40, low=-20), "z": ints(5, 40, low=1) * np.tile([1, -1], 20)})


def test_casts():
    graph = """g (float[n] x, int64[n] i) => (
        int64 a, bool b, float16 c, double d, int32 e, float f
    ) {
        a = Cast <to = 7> (x)  b = Cast <to = 9> (x)  c = Cast <to = 10> (x)
        d = Cast <to = 11> (x)  e = Cast <to = 6> (i)  f = CastLike(i, x)
    }"""
    x = np.array([-1.7, 0.0, 0.2, 3.9], np.float32)
    check_case(graph, {"x": x, "i": np.array([0, 1, -5, 9])})


def test_clip_in_its_forms():
    graph = """g (float[n] x, float low) => (float a, float b, float c) {
        top = Constant <value_float = 0.5> ()
        a = Clip(x, low, top)  b = Clip(x, low)  c = Clip(x, , top)
    }"""
    check_case(graph, {"x": normal(50), "low": np.array(-0.25, np.float32)})


REDUCTIONS = [
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSumExp", "ReduceLogSum"),
]


@pytest.mark.parametrize("axes", ["{-1}", "{1}", "{0, 2}"])
def test_reductions(axes: str):
    outputs, body = lines(REDUCTIONS, "{}(x, axes)")
    kept, kept_body = lines(REDUCTIONS, "{} <keepdims = 0> (x, axes)")
    graph = f"""g (float[b, n, 16] x) => ({outputs}, {kept.replace("y", "z")}) {{
        axes = Constant <value = int64[{axes.count(",") + 1}] {axes}> ()
        {body}
        {kept_body.replace("y", "z")}
    }}"""
    check_case(graph, {"x": np.abs(normal(2, 3, 16)) + 0.5}, reduction=48)


def test_reduction_of_everything_and_of_nothing():
    graph = """g (float[b, n] x) => (float a, float c) {
        none = Constant <value = int64[0] {}> ()
        a = ReduceSum(x)
        c = ReduceSum <noop_with_empty_axes = 1> (x, none)
    }"""
    check_case(graph, {"x": normal(3, 5)}, reduction=15)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax_and_positions(axis: int):
    graph = f"""g (float[b, n, 7] x) => (float a, float c, int64 d, int64 e, float f) {{
        a = Softmax <axis = {axis}> (x)  c = LogSoftmax <axis = {axis}> (x)
        d = ArgMax <axis = {axis}> (x)
        e = ArgMin <axis = {axis}, keepdims = 0, select_last_index = 1> (x)
        k = Constant <value = int64 {{{axis}}}> ()
        f = CumSum(x, k)
    }}"""
    check_case(graph, {"x": np.round(normal(2, 5, 7) * 2)}, {"x": normal(1, 1, 7)}, reduction=16)


def test_cumsum_exclusive_and_reverse():
    graph = """g (float[n] x) => (float a, float b, float c) {
        k = Constant <value = int64 {0}> ()
        a = CumSum <exclusive = 1> (x, k)  b = CumSum <reverse = 1> (x, k)
        c = CumSum <exclusive = 1, reverse = 1> (x, k)
    }"""
    check_case(graph, {"x": normal(9)}, {"x": normal(1)}, reduction=9)


def test_softmax_before_opset_13_takes_all_axes_behind():
    graph = "g (float[b, 3, 4] x) => (float y) { y = Softmax <axis = 1> (x) }"
    check_case(graph, {"x": normal(2, 3, 4)}, opset=11, reduction=12)


@pytest.mark.parametrize("columns", [1, 16, 21, 48])
def test_products_with_weights(columns: int):
    graph = f"""g (float[b, n, 24] x, float[24] v) => (float a, float c, float d, float e)
    <float[24, {columns}] w = {{{", ".join(map(str, normal(24 * columns)))}}},
     float[{columns}] bias = {{{", ".join(map(str, normal(columns)))}}}> {{
        p = MatMul(x, w)
        a = Add(p, bias)
        c = MatMul(v, w)
        s = Constant <value = int64[2] {{-1, 24}}> ()
        flat = Reshape(x, s)
        d = Gemm <alpha = 0.5, beta = 2.0> (flat, w, bias)
        t = Transpose(w)
        e = Gemm <transB = 1> (flat, t)
    }}"""
    many = [{"x": normal(b, n, 24), "v": normal(24)} for b, n in [(2, 3), (1, 1), (1, 9), (3, 4)]]
    check_case(graph, *many, reduction=24)


def test_batched_products():
    graph = """g (float[b, 2, n, 5] x, float[b, 2, 5, m] z, float[n, n] q, float[5] v) => (
        float a, float c, float d, float e
    ) {
        a = MatMul(x, z)
        t = Transpose <perm = [0, 1, 3, 2]> (x)
        c = MatMul(x, t)
        d = MatMul(q, x)
        e = MatMul(x, v)
    }"""
    many = [
        {"x": normal(b, 2, n, 5), "z": normal(b, 2, 5, m), "q": normal(n, n), "v": normal(5)}
        for b, n, m in [(2, 3, 17), (1, 1, 1), (2, 33, 16)]
    ]
    check_case(graph, *many, reduction=33)


def test_integer_product_and_einsum():
    graph = """g (int64[n, 5] i, int64[5, 3] j, float[b, n, 4] x, float[b, m, 4] z) => (
        int64 a, float c
    ) {
        a = MatMul(i, j)
        c = Einsum <equation = "bnd,bmd->bmn"> (x, z)
    }"""
    feeds: dict[str, Any] = {"i": ints(9, 6, 5), "j": ints(9, 5, 3)}
    check_case(graph, {**feeds, "x": normal(2, 6, 4), "z": normal(2, 3, 4)})


def test_normalisations():
    numbers = ", ".join(map(str, normal(32)))
    graph = f"""g (float[b, n, 32] x, float[b, 32, h] z) => (
        float a, float c, float d, float e, float f, float h1
    ) <float[32] s = {{{numbers}}}, float[32] t = {{{numbers[::1]}}},
       float[32] v = {{{", ".join(map(str, np.abs(normal(32)) + 0.5))}}}> {{
        a = LayerNormalization <epsilon = 1e-6> (x, s, t)
        c, mean, inverse = LayerNormalization (x, s)
        d = BatchNormalization (z, s, t, t, v)
        e = InstanceNormalization (z, s, t)
        f = LpNormalization <axis = -1> (x)
        h1 = Identity(inverse)
    }}"""
    check_case(
        graph,
        {"x": normal(2, 3, 32), "z": normal(2, 32, 6)},
        {"x": normal(1, 1, 32) + 5, "z": normal(1, 32, 4)},
        reduction=64,
    )


def test_group_normalisation():
    graph = """g (float[b, 6, h] x) => (float y)
    <float[6] s = {1, 2, 3, 4, 5, 6}, float[6] t = {0.5, 1, 0, 2, 3, 1}> {
        y = GroupNormalization <num_groups = 3> (x, s, t)
    }"""
    check_case(graph, {"x": normal(2, 6, 5)}, opset=21, reduction=32)


CONVOLUTIONS = {
    "pointwise": ((8, 6, 1, 1), "group = 1"),
    "window": ((8, 6, 3, 3), "pads = [1, 1, 1, 1]"),
    "depthwise": ((6, 1, 3, 3), "group = 6, pads = [1, 1, 1, 1], strides = [2, 2]"),
    "groups": ((8, 3, 3, 2), "group = 2, dilations = [2, 1], pads = [0, 1, 2, 0]"),
    "same": ((8, 6, 3, 3), 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    "same, lower": ((8, 6, 2, 2), 'auto_pad = "SAME_LOWER"'),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str):
    shape, attributes = CONVOLUTIONS[case]
    dims = ", ".join(map(str, shape))
    numbers = ", ".join(map(str, normal(int(np.prod(shape)))))
    bias = ", ".join(map(str, normal(shape[0])))
    graph = f"""g (float[b, 6, 9, 11] x) => (float y)
    <float[{dims}] w = {{{numbers}}}, float[{shape[0]}] bias = {{{bias}}}> {{
        c = Conv <{attributes}> (x, w, bias)
        y = Relu(c)
    }}"""
    check_case(graph, {"x": normal(2, 6, 9, 11)}, {"x": normal(1, 6, 9, 11)}, reduction=54)


PADS = {
    "of the image": "0, 0, 1, 2, 0, 0, 2, 1",
    "of the channels too": "0, 1, 1, 1, 0, 1, 1, 1",
    "cut off": "0, 0, -1, 0, 0, 0, 0, -1",
}


@pytest.mark.parametrize("case", PADS)
def test_padding_before_a_convolution(case: str):
    channels = 4 if "channels" in case else 2
    numbers = ", ".join(map(str, normal(5 * channels * 9)))
    graph = f"""g (float[b, 2, 7, 8] x) => (float y)
    <float[5, {channels}, 3, 3] w = {{{numbers}}}, int64[8] pads = {{{PADS[case]}}}> {{
        padded = Pad(x, pads)
        y = Conv <strides = [2, 2]> (padded, w)
    }}"""
    check_case(graph, {"x": normal(3, 2, 7, 8)}, reduction=36)


def test_convolutions_around_work_on_each_entry():
    weights = {"w": (16, 3, 3, 3), "d": (16, 1, 3, 3), "p": (16, 16, 1, 1)}
    numbers = {
        name: ", ".join(map(str, normal(int(np.prod(shape))) / 3))
        for name, shape in weights.items()
    }
    given = ",\n".join(
        f"float[{', '.join(map(str, shape))}] {name} = {{{numbers[name]}}}"
        for name, shape in weights.items()
    )
    channel = ", ".join(map(str, np.abs(normal(16)) + 0.5))
    graph = f"""g (float[b, 3, h, k] x, float[b, 16, 1, 1] gate) => (float y, float z, float last)
    <{given}, float[16] c = {{{channel}}}> {{
        zero = Constant <value_float = 0.0> ()
        six = Constant <value_float = 6.0> ()
        a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
        normed = BatchNormalization(a, c, c, c, c)
        first = Clip(normed, zero, six)
        spread = Conv <group = 16, pads = [1, 1, 1, 1]> (first, d)
        gated = Mul(spread, gate)
        mixed = Conv(gated, p, c)
        y = Add(mixed, first)
        z = GlobalAveragePool(y)
        last = Transpose <perm = [0, 2, 3, 1]> (y)
    }}"""
    sizes = [(1, 9, 12), (2, 8, 7)]
    check_case(
        graph,
        *[{"x": normal(b, 3, h, k), "gate": normal(b, 16, 1, 1)} for b, h, k in sizes],
        reduction=200,
    )


def test_convolution_of_a_symbolic_length():
    graph = """g (float[b, 2, n] x, float[3, 2, 3] w) => (float y) {
        y = Conv <pads = [1, 1], strides = [2]> (x, w)
    }"""
    check_case(graph, *[{"x": normal(2, 2, n), "w": normal(3, 2, 3)} for n in (7, 8)])


def test_pooling():
    graph = """g (float[b, 3, 9, 10] x) => (float a, float c, float d, float e, float f) {
        a = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1]> (x)
        c = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
        d = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1,
                         count_include_pad = 1, pads = [1, 0, 0, 0]> (x)
        e = GlobalAveragePool(x)
        f = GlobalMaxPool(x)
    }"""
    check_case(graph, {"x": normal(2, 3, 9, 10)}, reduction=90)


def test_depth_to_space():
    graph = """g (float[b, 8, 3, n] x) => (float a, float c) {
        a = DepthToSpace <blocksize = 2> (x)
        c = DepthToSpace <blocksize = 2, mode = "CRD"> (x)
    }"""
    check_case(graph, {"x": normal(2, 8, 3, 5)})


def test_what_does_not_depend_on_inputs_is_folded_or_made():
    graph = """g (float[n] x) => (float y, int64 r, float full) {
        two = Constant <value_float = 2.0> ()
        many = Constant <value = int64[2] {3, 1}> ()
        four = Mul(two, two)
        y = Mul(x, four)
        start = Constant <value = int64 {3}> ()
        limit = Constant <value = int64 {-4}> ()
        step = Constant <value = int64 {-2}> ()
        r = Range(start, limit, step)
        full = Expand(two, many)
    }"""
    check_case(graph, {"x": normal(3)})


def test_dropout_passes_through():
    graph = "g (float[n] x) => (float y, bool m) { y, m = Dropout(x) }"
    check_case(graph, {"x": normal(5)})
