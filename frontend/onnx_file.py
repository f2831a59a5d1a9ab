"""ONNX files, protos and models to `ir.Model`; external data is mapped, never read whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from ..passes.errors import LoadError
from .shapes import infer_missing_shapes

OLDEST_OPSET = 11
NEWEST_OPSET = 26
"""ONNX Runtime 1.31 goes no further."""
CONVERTED_OPSET = 18
"""Where models older than OLDEST_OPSET are taken to."""
# Model-local functions need 8; 10 is what opset 21, with its 4-bit types, belongs to.
IR_VERSION = 10
_PROTOBUF_LIMIT = 2**31 - 1


def from_onnx_file(path: Path) -> ir.Model:
    """Reads the graph of an ONNX file; the weights in external files are mapped when needed."""
    size = path.stat().st_size
    if size == 0:
        raise LoadError(f"{path}: the file is empty")
    if size > _PROTOBUF_LIMIT:
        raise LoadError(
            f"{path}: larger than the 2 GiB that an ONNX file may have; it is damaged, or its "
            "weights belong into an external data file"
        )
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf's own classes differ between its implementations
        raise LoadError(f"{path}: not an ONNX file in protobuf form, or truncated") from error
    return _from_proto(proto, str(path), path.absolute().parent)


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Takes over a proto, whose weights are shared and not copied."""
    return _from_proto(proto, "ModelProto", None)


def from_ir(model: ir.Model) -> ir.Model:
    """A copy of the graph with the same tensors, so that passes leave the caller's as it is."""
    _check_opset(dict(model.opset_imports), "ir.Model")
    return _finished(model.clone())


def _from_proto(proto: onnx.ModelProto, origin: str, folder: Path | None) -> ir.Model:
    if not proto.HasField("graph") or proto.ir_version <= 0:
        raise LoadError(f"{origin}: holds no ONNX model, or is truncated")
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    _check_opset(opsets, origin)
    for tensor in _external_tensors(proto):
        _check_external(tensor, origin, folder)
    version = opsets.get("", opsets.get("ai.onnx", NEWEST_OPSET))
    if version < OLDEST_OPSET:
        proto = _converted(proto, origin, folder)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise LoadError(f"{origin}: not a well-formed ONNX model: {error}") from error
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    return _finished(model)


def _finished(model: ir.Model) -> ir.Model:
    # Up to IR version 3 every weight is an input too; what the model calls a default is a constant.
    RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, IR_VERSION)
    infer_missing_shapes(model)
    return model


def _check_opset(opsets: dict[str, int], origin: str) -> None:
    version = opsets.get("", opsets.get("ai.onnx"))
    if not opsets:
        raise LoadError(f"{origin}: imports no opset, so its operators have no meaning")
    if version is not None and version > NEWEST_OPSET:
        raise LoadError(
            f"{origin}: opset {version} is newer than {NEWEST_OPSET}, the last that ONNX Runtime "
            "runs; export the model at an older one"
        )


def _external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is kept outside the file, those of subgraphs and functions too."""
    for function in proto.functions:
        for node in function.node:
            yield from _external_in_node(node)
    yield from _external_in_graph(proto.graph)


def _external_in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor
    for node in graph.node:
        yield from _external_in_node(node)


def _external_in_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        for tensor in (attribute.t, *attribute.tensors):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor
        for graph in (attribute.g, *attribute.graphs):
            yield from _external_in_graph(graph)


def _check_external(tensor: onnx.TensorProto, origin: str, folder: Path | None) -> None:
    """Refuses data that is missing, too short, or not in the model's own folder."""
    where = f"{origin}: the data of {tensor.name!r}"
    if folder is None:
        raise LoadError(f"{where} lies in another file; give the path of the model instead")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location:
        raise LoadError(f"{where} is said to lie in another file, which is not named")
    path = folder / location
    inside = path.resolve().is_relative_to(folder.resolve())
    if Path(location).is_absolute() or ".." in Path(location).parts or not inside:
        raise LoadError(
            f"{where} lies in {location!r}, outside the model's folder; copy it beside the model"
        )
    if not path.is_file():
        raise LoadError(f"{where} lies in {path}, which is missing")
    # A second name of a file may stand for one outside the folder; onnx_ir refuses to map it.
    if path.stat().st_nlink > 1:
        raise LoadError(f"{where} lies in {path}, which has several hard links; copy the file")
    _check_extent(tensor, entries, path, where)


def _check_extent(
    tensor: onnx.TensorProto, entries: dict[str, str], path: Path, where: str
) -> None:
    needed = ir.serde.TensorProtoTensor(tensor).nbytes
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError:
        raise LoadError(f"{where} has an offset or length that is no number") from None
    if offset < 0 or length != needed:
        raise LoadError(f"{where} is said to take {length} bytes at {offset}; it takes {needed}")
    if offset + length > path.stat().st_size:
        raise LoadError(
            f"{where} ends at byte {offset + length} of {path}, which has only "
            f"{path.stat().st_size}; the file is truncated"
        )


def _converted(proto: onnx.ModelProto, origin: str, folder: Path | None) -> onnx.ModelProto:
    """The model at CONVERTED_OPSET; adapters look into constants, so external data is read."""
    if folder is not None:
        onnx.external_data_helper.load_external_data_for_model(proto, str(folder))
    try:
        return onnx.version_converter.convert_version(proto, CONVERTED_OPSET)
    except Exception as error:
        node = _first_that_fails(proto)
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"node {node.name!r} ({node.op_type})" if node is not None else "the model"
        raise LoadError(
            f"{origin}: {what} of an opset before {OLDEST_OPSET} cannot be converted to "
            f"{CONVERTED_OPSET}: {cause}; export the model anew"
        ) from error


def _first_that_fails(proto: onnx.ModelProto) -> onnx.NodeProto | None:
    """The first node that cannot be converted alone, with its own constants."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    node: onnx.NodeProto
    for node in proto.graph.node:
        graph = onnx.GraphProto(name="one", node=[node])
        graph.initializer.extend(constants[name] for name in node.input if name in constants)
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in node.input if name)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
        alone = onnx.ModelProto(
            ir_version=proto.ir_version, opset_import=proto.opset_import, graph=graph
        )
        try:
            onnx.version_converter.convert_version(alone, CONVERTED_OPSET)
        except Exception:
            return node
    return None
