from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from undense.frontend.dense import run_dense
from undense.frontend.load import load
from undense.frontend.onnx_file import IR_VERSION
from undense.passes.errors import LoadError

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def proto(opset: int = 17, weight: TensorProto | None = None) -> onnx.ModelProto:
    """`y = relu(x · w)` with no type for the value between."""
    w = weight if weight is not None else onnx.numpy_helper.from_array(WEIGHT, "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [w],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external(location: str, *, dims: tuple[int, ...] = (3, 4), **entries: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def written(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 25, 26])
def test_a_file_loads_at_its_own_opset_with_shapes_and_names(tmp_path: Path, opset: int) -> None:
    model = load(written(tmp_path, proto(opset)))
    assert model.opset_imports[""] == opset
    assert model.ir_version >= IR_VERSION
    between = model.graph[0].outputs[0]
    assert between.dtype == ir.DataType.FLOAT
    assert str(between.shape) == "[n,4]"
    assert list(model.graph.initializers) == ["w"]


def test_proto_and_ir_models_load_and_the_callers_stay_as_they_are() -> None:
    source = proto()
    before = source.SerializeToString()
    from_proto = load(source)
    given = ir.from_proto(source)
    from_ir = load(given)
    from_ir.graph.remove(from_ir.graph[1])
    assert source.SerializeToString() == before
    assert len(given.graph) == 2
    assert from_ir.graph.initializers["w"].const_value is given.graph.initializers["w"].const_value
    x = np.ones((2, 3), np.float32)
    assert np.array_equal(run_dense(from_proto, [{"x": x}])[0]["y"], x @ WEIGHT)


def test_weights_that_old_models_list_as_inputs_are_constants() -> None:
    source = proto(opset=11)
    source.ir_version = 3
    source.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    assert [value.name for value in load(source).graph.inputs] == ["x"]


def test_opsets_before_11_are_converted(tmp_path: Path) -> None:
    model = load(written(tmp_path, proto(opset=9)))
    assert model.opset_imports[""] == 18
    x = np.ones((2, 3), np.float32)
    assert np.array_equal(run_dense(model, [{"x": x}])[0]["y"], x @ WEIGHT)


def test_a_node_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    source = proto(opset=8)
    scan = helper.make_node("Scan", ["", "x"], ["s"], name="the_scan", num_scan_inputs=1)
    body = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("i", "o")]
    inner = helper.make_graph([helper.make_node("Neg", ["i"], ["o"])], "b", body[:1], body[1:])
    scan.attribute.append(helper.make_attribute("body", inner))
    scan.input[0] = "x"
    source.graph.node.append(scan)
    with pytest.raises(LoadError, match=r"model\.onnx: node 'the_scan' \(Scan\)"):
        load(written(tmp_path, source))


def test_external_data_is_mapped_from_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 8 + WEIGHT.tobytes())
    path = written(tmp_path, proto(weight=external("w.bin", offset=8, length=48)))
    tensor = load(path).graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert np.array_equal(tensor.numpy(), WEIGHT)
    tensor.release()


def test_more_than_two_gigabytes_are_neither_read_nor_copied(tmp_path: Path) -> None:
    rows = 600_000_000
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(rows * 4)
        file.seek(rows * 4 - 4)
        file.write(np.float32(7).tobytes())
    weight = external("big.bin", dims=(rows, 1), length=rows * 4)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "i"], ["y"])],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [weight],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = written(tmp_path, source)
    tracemalloc.start()
    try:
        model = load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24
    outputs = run_dense(model, [{"i": np.array([0, rows - 1])}])[0]
    assert outputs["y"].ravel().tolist() == [0.0, 7.0]


def refused(path: Path, *words: str) -> None:
    """`load` names the file and the cause, and leaves the folder as it was."""
    before = sorted(path.parent.rglob("*")) if path.parent.exists() else []
    with pytest.raises(LoadError) as caught:
        load(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert before == (sorted(path.parent.rglob("*")) if path.parent.exists() else [])


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, "not a file")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "empty")
    (tmp_path / "text.onnx").write_text("this is no model")
    refused(tmp_path / "text.onnx", "truncated")
    whole = proto().SerializeToString()
    for length in range(1, len(whole)):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(LoadError, match=r"cut\.onnx"):
            load(tmp_path / "cut.onnx")


def test_a_single_file_beyond_what_protobuf_holds(tmp_path: Path) -> None:
    with open(tmp_path / "huge.onnx", "wb") as file:
        file.truncate(2**31 + 10)
    refused(tmp_path / "huge.onnx", "2 GiB")


def test_opsets_that_are_missing_or_too_new(tmp_path: Path) -> None:
    source = proto()
    del source.opset_import[:]
    refused(written(tmp_path, source), "no opset")
    refused(written(tmp_path, proto(opset=27)), "opset 27", "export")


def test_external_data_that_is_not_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    outside = tmp_path / "w.bin"
    outside.write_bytes(WEIGHT.tobytes())
    refused(written(folder, proto(weight=external("../w.bin"))), "outside", "'w'")
    refused(written(folder, proto(weight=external(str(outside)))), "outside")
    (folder / "link.bin").symlink_to(outside)
    refused(written(folder, proto(weight=external("link.bin"))), "outside")
    (folder / "hard.bin").hardlink_to(outside)
    refused(written(folder, proto(weight=external("hard.bin"))), "hard links")
    refused(written(folder, proto(weight=external("none.bin"))), "missing")
    refused(written(folder, proto(weight=external(""))), "not named")
    with pytest.raises(LoadError, match="give the path"):
        load(proto(weight=external("w.bin")))


def test_external_data_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    refused(written(tmp_path, proto(weight=external("w.bin", offset=4))), "byte 52", "truncated")
    refused(written(tmp_path, proto(weight=external("w.bin", length=40))), "40 bytes", "48")
    refused(written(tmp_path, proto(weight=external("w.bin", offset="x"))), "no number")


def test_external_data_of_a_subgraph_and_of_an_attribute_is_checked(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["o"])],
        "b",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [3, 4])],
        [external("none.bin")],
    )
    source = proto()
    source.graph.node.append(
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    )
    refused(written(tmp_path, source), "none.bin", "missing")
    source = proto()
    source.graph.node.append(helper.make_node("Constant", [], ["c"], value=external("../c.bin")))
    refused(written(tmp_path, source), "outside")


def test_what_is_no_model_at_all() -> None:
    with pytest.raises(LoadError, match=r"builtins\.int is no model"):
        load(3)
    with pytest.raises(LoadError, match="args"):
        load(proto(), args=(1,))
    with pytest.raises(LoadError, match="dynamic_shapes"):
        load(proto(), dynamic_shapes={})
