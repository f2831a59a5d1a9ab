"""Operators that move, cut or read entries against ONNX Runtime, with symbolic dimensions."""

from __future__ import annotations

import numpy as np
import pytest
from relax_models import check_case, ints, normal


def test_reshapes():
    graph = """g (float[b, n, 12] x) => (float a, float c, float d, float e, float f, float h) {
        s0 = Constant <value = int64[4] {0, -1, 3, 4}> ()
        s1 = Constant <value = int64[2] {-1, 12}> ()
        s2 = Constant <value = int64[4] {0, 0, 4, -1}> ()
        a = Reshape(x, s0)  c = Reshape(x, s1)  d = Flatten(x)  e = Flatten <axis = -1> (x)
        k = Constant <value = int64[2] {0, -1}> ()
        u = Unsqueeze(x, k)
        f = Squeeze(u, k)
        t = Transpose <perm = [2, 0, 1]> (x)
        r = Reshape(x, s2)
        h = Transpose(r)
    }"""
    check_case(graph, {"x": normal(2, 3, 12)}, {"x": normal(1, 1, 12)})


def test_reshape_to_a_shape_that_is_computed():
    graph = """g (float[b, n, 12] x) => (float y, int64 s, int64 count) {
        s = Shape(x)
        first = Shape <start = 0, end = 1> (x)
        tail = Constant <value = int64[2] {-1, 4}> ()
        shape = Concat <axis = 0> (first, tail)
        y = Reshape(x, shape)
        count = Size(x)
    }"""
    check_case(graph, {"x": normal(2, 3, 12)}, {"x": normal(5, 1, 12)})


def test_arithmetic_on_shapes_reaches_run_time():
    graph = """g (float[b, n] x) => (int64 both, float f, int64 r) {
        s = Shape(x)
        two = Constant <value = int64[1] {2}> ()
        double = Mul(s, two)
        both = Add(double, s)
        last = Constant <value = int64 {1}> ()
        n = Gather(s, last)
        f0 = Cast <to = 1> (n)
        f = Sqrt(f0)
        zero = Constant <value = int64 {0}> ()
        r = Range(zero, n, last)
    }"""
    check_case(graph, {"x": normal(2, 9)}, {"x": normal(3, 1)})


def test_concat_and_split():
    graph = """g (float[b, p, 6] x, float[b, n, 6] z) => (
        float a, float c, float d, float e, float f
    ) {
        a = Concat <axis = 1> (x, z)
        sizes = Constant <value = int64[3] {1, 2, 3}> ()
        c, d, e = Split <axis = -1> (x, sizes)
        f, rest = Split <axis = 2, num_outputs = 2> (z)
    }"""
    check_case(
        graph,
        {"x": normal(2, 3, 6), "z": normal(2, 2, 6)},
        {"x": normal(2, 0, 6), "z": normal(2, 1, 6)},
    )


SLICES = {
    "front": ("{0}", "{5}", "{1}", "{1}"),
    "beyond the end": ("{2}", "{99}", "{1}", "{1}"),
    "to the end": ("{1}", "{9223372036854775807}", "{0}", "{1}"),
    "from behind": ("{-3}", "{-1}", "{1}", "{1}"),
    "steps": ("{1}", "{12}", "{2}", "{3}"),
    "backwards": ("{-1}", "{-9223372036854775807}", "{1}", "{-1}"),
    "backwards in steps": ("{9}", "{1}", "{2}", "{-3}"),
}


@pytest.mark.parametrize("case", SLICES)
def test_slice(case: str):
    start, end, axis, step = SLICES[case]
    graph = f"""g (float[b, n, 12] x) => (float y) {{
        s = Constant <value = int64[1] {start}> ()  e = Constant <value = int64[1] {end}> ()
        a = Constant <value = int64[1] {axis}> ()   k = Constant <value = int64[1] {step}> ()
        y = Slice(x, s, e, a, k)
    }}"""
    check_case(graph, {"x": normal(2, 7, 12)}, {"x": normal(3, 3, 12)})


def test_expand_tile_and_full():
    graph = """g (float[1, n, 1] x, float[b] z) => (float a, float c, float d) {
        s = Shape(z)
        three = Constant <value = int64[1] {3}> ()
        one = Constant <value = int64[1] {1}> ()
        shape = Concat <axis = 0> (s, one, three)
        a = Expand(x, shape)
        times = Constant <value = int64[3] {2, 1, 3}> ()
        c = Tile(x, times)
        d = ConstantOfShape <value = float[1] {0.5}> (shape)
    }"""
    check_case(
        graph, {"x": normal(1, 3, 1), "z": normal(4)}, {"x": normal(1, 1, 1), "z": normal(1)}
    )


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(mode: str):
    graph = f"""g (float[b, 5, n] x) => (float y) {{
        p = Constant <value = int64[6] {{0, 1, 2, 0, 2, 1}}> ()
        fill = Constant <value_float = 0.5> ()
        y = Pad <mode = "{mode}"> (x, p, fill)
    }}"""
    check_case(graph, {"x": normal(2, 5, 6)})


def test_gathers():
    graph = """g (float[20, 5] x, int64[b, n] i, float[b, n, 5] z, int64[b, n, 2] j) => (
        float a, float c, float d, float e
    ) {
        a = Gather(x, i)
        last = Constant <value = int64 {-1}> ()
        c = Gather <axis = 1> (z, last)
        d = GatherElements <axis = 2> (z, j)
        e = GatherND <batch_dims = 1> (z, j)
    }"""
    b, n = 3, 4
    j = np.stack([ints(n, b, n), ints(5, b, n)], -1)
    check_case(
        graph, {"x": normal(20, 5), "i": ints(20, b, n, low=-20), "z": normal(b, n, 5), "j": j}
    )


def test_gather_of_two_rows():
    graph = """g (float[20, 5] x) => (float y) {
        i = Constant <value = int64[2] {3, -1}> ()
        y = Gather(x, i)
    }"""
    check_case(graph, {"x": normal(20, 5)})


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters(reduction: str):
    graph = f"""g (float[6, 4] x, int64[3, 1] i, float[3, 4] u, int64[2, 4] k, float[2, 4] v) => (
        float a, float c
    ) {{
        a = ScatterND <reduction = "{reduction}"> (x, i, u)
        c = ScatterElements <axis = 0, reduction = "{reduction}"> (x, k, v)
    }}"""
    positions = np.array([[4], [0], [2]])
    rows = np.array([[0, 1, 2, 3], [5, 4, 3, 2]])
    feeds = {"x": normal(6, 4), "i": positions, "u": normal(3, 4), "k": rows, "v": normal(2, 4)}
    check_case(graph, feeds)


def test_one_hot_triangle_and_identity():
    graph = """g (float[b, n, n] x, int64[b, n] i) => (float a, float c, float d, float e) {
        depth = Constant <value = int64 {5}> ()
        pair = Constant <value = float[2] {0.25, 2.0}> ()
        a = OneHot <axis = 1> (i, depth, pair)
        k = Constant <value = int64 {1}> ()
        c = Trilu(x, k)
        d = Trilu <upper = 0> (x)
        first = Constant <value = int64 {0}> ()
        m = Gather(x, first)
        e = EyeLike <k = 1> (m)
    }"""
    check_case(graph, {"x": normal(2, 4, 4), "i": ints(5, 2, 4, low=-5)})
