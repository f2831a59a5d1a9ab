"""What the lowering refuses, what it records, and what its result is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm
from helpers import assert_close, one_node_model
from relax_models import compare, compile_model, parse, run, run_ort
from structure_cases import stats_of, weight_of
from undense.backend import relax_build
from undense.backend.reference import run_reference
from undense.backend.target import Target
from undense.passes.errors import LoweringError, MissingDependencyError
from undense.passes.nodes import metadata
from undense.passes.structures import structures

LINEAR = "g (float[b, 4] x) => (float y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {%s}"


def refused(graph: str, opset: int = 20, target: str = "llvm") -> str:
    with pytest.raises(LoweringError) as caught:
        relax_build.check(ir.from_proto(parse(graph, opset)), Target.parse(target))
    return str(caught.value)


def test_all_unknown_operators_are_named_with_the_way_out():
    message = refused("""g (float[n, 4] x) => (float y) {
        [first] a = Hardmax(x)
        [second] b = Relu(a)
        [third] y = Det(b)
    }""")
    assert "Hardmax (node 'first')" in message
    assert "2 nodes: Det, Hardmax" in message
    assert message.endswith("; compile for target ort-cpu, which covers all of ONNX")


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[n, 4] x) => (float y) { y = Hardmax(x) }",
        "g (string[n] x) => (float y) { y = Cast <to = 1> (x) }",
        "g (float[n] x, int64[2] s) => (float y) { y = Reshape(x, s) }",
    ],
)
def test_the_way_out_on_gpus_stays_on_gpus(graph: str):
    message = refused(graph, target="cuda -arch=sm_90")
    assert message.endswith("; compile for target ort-cuda, which covers all of ONNX")


def test_shapes_that_depend_on_data_are_refused():
    message = refused("""g (float[n] x, int64[2] s) => (float y) {
        [here] y = Reshape(x, s)
    }""")
    assert message.startswith("Reshape (node 'here'): shape depends on the data")


def test_dimensions_that_do_not_agree_are_refused():
    message = refused("g (float[b, 3] x, float[b, 4] z) => (float y) { y = Add(x, z) }")
    assert "dimensions 3 and 4 do not broadcast" in message
    message = refused(LINEAR.replace("b, 4", "b, 5") % "y = MatMul(x, w)")
    assert "dimensions 5 and 4 do not agree" in message


def test_types_that_are_not_covered_are_refused():
    message = refused("g (bfloat16[n] x) => (bfloat16 y) { y = Relu(x) }")
    assert "x: type BFLOAT16 is not covered by TVM" in message
    message = refused("g (float[n] x) => (float16 y) { [c] y = Cast <to = 17> (x) }")
    assert "Cast (node 'c'): type FLOAT8E4M3FN" in message


def test_subgraphs_are_refused():
    message = refused("""g (bool c, float[n] x) => (float y) {
        y = If (c) <then_branch = t () => (float z) { z = Identity(x) },
                    else_branch = e () => (float z) { z = Neg(x) }>
    }""")
    assert message.startswith("If (node")


@pytest.mark.parametrize(
    ("node", "cause"),
    [
        ("y, m = MaxPool <kernel_shape = [2, 2]> (x)", "indices of the maxima"),
        ('y = Pad <mode = "mystery"> (x, p)', "mode 'mystery'"),
        ("y = BatchNormalization <training_mode = 1> (x, s, s, s, s)", "training mode"),
        ("y = Split <num_outputs = 1> (x)", None),
        ("y, m = Split <num_outputs = 2> (x)", "split into equal parts"),
        ("y = Squeeze (x)", "depends on the symbolic dimensions"),
    ],
)
def test_attributes_that_are_not_covered_are_refused(node: str, cause: str | None):
    graph = f"""g (float[n, 3, 8, 8] x) => (float y, float m2)
    <float[3] s = {{1, 1, 1}}, int64[8] p = {{0, 0, 1, 1, 0, 0, 1, 1}}> {{
        {node}
        m2 = Identity({"m" if ", m" in node else "y"})
    }}"""
    if cause is None:
        graph = graph.replace("[n, 3, 8, 8]", "[2, n]")
        relax_build.check(ir.from_proto(parse(graph)), Target.parse("llvm"))
        return
    assert cause in refused(graph)


def test_bounds_of_tables_are_recorded():
    graph = """g (float[b, seq, 3] x, float[b, 1, past] p) => (float y, float z)
    <float[8, 3] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
     21, 22, 23}> {
        zero = Constant <value = int64[1] {0}> ()
        seq = Shape <start = 1, end = 2> (x)
        past = Shape <start = 2> (p)
        total = Add(seq, past)
        rows = Slice(table, zero, seq)
        y = Add(x, rows)
        z = Slice(table, past, total, zero)
    }"""
    model = ir.from_proto(parse(graph))
    model.metadata_props["undense.dim_bounds"] = json.dumps({"b": [1, 64], "seq": [2, None]})
    module = compile_model(model)
    assert module.dimension_bounds == {
        "b": (1, 64),
        "seq": (2, 8),
        "past": (0, 8),
        "seq + past": (0, 8),
    }
    given = {
        "x": np.ones((1, 4, 3), np.float32),
        "p": np.ones((1, 1, 2), np.float32),
    }
    y, z = run(module, given)
    table = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.testing.assert_array_equal(y, 1 + table[None, :4])
    np.testing.assert_array_equal(z, table[2:6])


def test_dimensions_that_are_sums_follow_their_parts():
    model = parse("""g (float[b, past] p, float[b, seq] x, float[b, t] mask) => (float y) {
        both = Concat <axis = 1> (p, x)
        y = Add(both, mask)
    }""")
    model.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + seq"
    module = compile_model(model)
    assert module.inputs[2].shape == ("b", "past + seq")
    assert module.outputs[0].shape == ("b", "past + seq")
    given = {name: np.ones((2, n), np.float32) for name, n in [("p", 3), ("x", 2), ("mask", 5)]}
    assert run(module, given)[0].shape == (2, 5)
    with pytest.raises(Exception, match="mask"):
        run(module, {**given, "mask": np.ones((2, 4), np.float32)})


def test_model_local_functions_are_inlined_and_the_model_is_left_alone():
    text = """<ir_version: 10, opset_import: ["": 20, "local": 1]>
    g (float[n] x) => (float y) { y = local.twice(x) }
    <domain: "local", opset_import: ["": 20]>
    twice (a) => (b) { b = Add(a, a) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    module = compile_model(model)
    assert run(module, {"x": np.array([1.5], np.float32)})[0].tolist() == [3.0]
    assert [node.op_type for node in model.graph] == ["twice"]


def test_weights_are_apart_from_code_and_stored_once(tmp_path: Path):
    """An embedding tied to the head: one table, gathered from and multiplied with."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((300, 64)).astype(np.float32)
    model = parse("""g (int64[b, n] i) => (float y, float x) <float[300, 64] w> {
        x = Gather(w, i)
        t = Transpose(w)
        y = MatMul(x, t)
    }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "w"))
    del model.graph.input[1:]
    module = compile_model(model)
    assert module.parameter_names == list(module.weights)
    assert sum(array.size for array in module.weights.values()) == -(-300 // 16) * 16 * 64
    given = {"i": rng.integers(0, 300, (2, 5))}
    for actual, expected in zip(run(module, given), run_ort(model, given), strict=True):
        compare(actual, expected, 64)
    path = module.export(tmp_path)
    assert path == tmp_path / "module.so"
    assert table[7].tobytes() not in path.read_bytes()
    main = tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())["main"]
    weights = [tvm.runtime.tensor(module.weights[name]) for name in module.parameter_names]
    again = main(tvm.runtime.tensor(given["i"]), *weights)[0].numpy()
    np.testing.assert_array_equal(again, run(module, given)[0])


def test_indices_outside_of_a_table_stay_inside_of_it():
    graph = "g (int64[n] i) => (float y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { y = Gather(w, i) }"
    (rows,) = run(compile_model(parse(graph)), {"i": np.array([10**12, -(10**12), -1])})
    assert rows.tolist() == [[5, 6], [1, 2], [5, 6]]


def test_the_same_model_gives_the_same_code():
    graph = """g (float[b, h, p, 8] x, float[b, h, s, 8] z) => (float y) {
        k = Concat <axis = 2> (x, z)
        t = Transpose <perm = [0, 1, 3, 2]> (k)
        a = MatMul(z, t)
        y = Softmax(a)
    }"""
    first, second = (compile_model(parse(graph)) for _ in range(2))
    assert first.executable.as_text() == second.executable.as_text()


def test_constants_and_inputs_can_be_outputs():
    graph = """g (float[n, 2] x, float[m] z) => (float a, float b, int64 c, float d)
    <float[3] w = {1, 2, 3}> {
        a = Identity(x)
        b = Identity(w)
        c = Shape(z)
        shape = Constant <value = int64[1] {-1}> ()
        d = Reshape(x, shape)
    }"""
    given: dict[str, Any] = {"x": np.ones((3, 2), np.float32), "z": np.ones(4, np.float32)}
    results = run(compile_model(parse(graph)), given)
    for actual, expected in zip(results, run_ort(parse(graph), given), strict=True):
        compare(actual, expected, 1)


@pytest.mark.parametrize(("target", "engine"), [("llvm", "ort-cpu"), ("cuda", "ort-cuda")])
def test_a_missing_compiler_is_named(target: str, engine: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match=rf"install g\+\+ or clang, .* {engine},"):
        relax_build.check_toolchain(Target.parse(target))


@pytest.mark.parametrize("kind", sorted(structures()))
def test_structured_nodes_reach_their_kernel(kind: str):
    out_features, in_features = 48, 64
    structure = structures()[kind]().resolve(out_features, in_features, site="w")
    weight = weight_of((out_features, in_features))
    factors = structure.fit(weight, stats_of(in_features), seed=0, site="w")
    proto = one_node_model(structure, factors, out_features, in_features, leading=("b", "n"))
    model = ir.from_proto(proto)
    model.graph[0].metadata_props.update(metadata("w", structure, out_features, in_features))
    module = compile_model(model)
    assert all(name.startswith("w.") for name in module.parameter_names)
    for shape in [(2, 3, in_features), (1, 1, in_features)]:
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        (expected,) = run_reference(model, {"x": x}).values()
        assert_close(run(module, {"x": x})[0], expected, reduction=in_features)
