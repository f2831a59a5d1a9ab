"""What the library of a model computes: one form for all sites of equal shapes, and its sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from ...passes.nodes import StructuredNode, structured_nodes
from ..kernels import kernel_for
from ..kernels.base import Packed, Step
from .functions import Functions

ALIGNMENT = 64  # bytes, that generated code takes for granted
CHECKED_BYTES = 4096
"""Of the first packed tensor of a site: enough to tell its model from another."""


@dataclass(frozen=True)
class Stored:
    """A tensor that kernels read: dtype and shape, without its memory."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """`function(*values)`, a step whose values are numbered: x, then stored, then computed ones."""

    function: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A product, or a gather, of one structure and shape.

    Attributes:
        element_type: of x, its number in ONNX.
        dtype: of x.
        features: of x; 0 for indices, all of whose dimensions are rows.
        stored: packed tensors.
        computed: dtype and width of what the calls write, `y` last.
        calls: in order.
    """

    element_type: int
    dtype: str
    features: int
    stored: tuple[Stored, ...]
    computed: tuple[tuple[str, int], ...]
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Site:
    """A site as the nodes of one operator use it.

    Attributes:
        operator: name in the domain `undense`.
        tensor: name of the nodes' second input, the first packed tensor in `model.onnx`.
        element_type: its number in ONNX.
        elements: of that input.
        start: its first bytes.
        form: what is computed.
        offsets: of the stored tensors in the file of weights.
    """

    operator: str
    tensor: str
    element_type: int
    elements: int
    start: bytes
    form: Form
    offsets: tuple[int, ...]


def collect(model: ir.Model, functions: Functions, weights: BinaryIO) -> list[Site]:
    """The distinct sites of `model`, their tensors packed and written to `weights`.

    Runs inside `with tvm.target.Target(...)`. A site is packed once, and only one at a time is in
    memory.

    Raises:
        LoweringError: a structure without TVM kernel.
    """
    sites: dict[tuple[str, str, str], Site] = {}
    stored: dict[str, dict[str, tuple[Stored, int]]] = {}
    for node in structured_nodes(model):
        value = node.node.inputs[1]
        if value is None or value.const_value is None or value.name is None:
            continue  # read_node has refused it
        dtype = _index_dtype(node) if node.gathers else "float32"
        key = (node.node.op_type, value.name, dtype)
        if key in sites:
            continue
        if node.site not in stored:
            kernel = kernel_for(node.structure)
            packed = kernel.pack(node.structure, node.factors())
            stored[node.site] = dict(_write(packed, weights))
        tensor, places = value.const_value, stored[node.site]
        tensors = {suffix: there for suffix, (there, _) in places.items()}
        sites[key] = Site(
            operator=node.node.op_type,
            tensor=value.name,
            element_type=int(tensor.dtype),
            elements=int(tensor.size),
            start=tensor.tobytes()[:CHECKED_BYTES],
            form=_form(node, dtype, tensors, functions),
            offsets=tuple(offset for _, offset in places.values()),
        )
    return list(sites.values())


def _write(packed: Packed, weights: BinaryIO) -> Iterator[tuple[str, tuple[Stored, int]]]:
    for suffix, array in packed.items():
        weights.write(bytes(-weights.tell() % ALIGNMENT))
        offset = weights.tell()
        weights.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        yield suffix, (Stored(str(array.dtype), array.shape), offset)


def _form(
    node: StructuredNode, dtype: str, stored: Mapping[str, Stored], functions: Functions
) -> Form:
    kernel, features = kernel_for(node.structure), (node.out_features, node.in_features)
    shapes = {suffix: tensor.shape for suffix, tensor in stored.items()}
    steps: Sequence[Step]
    if node.gathers:
        steps = [kernel.gather(node.structure, *features, shapes, dtype)]
    else:
        steps = kernel.steps(node.structure, *features, shapes)
    numbers = {name: number for number, name in enumerate(["x", *stored])}
    computed, calls = list[tuple[str, int]](), list[Call]()
    for step in steps:
        for output in step.outputs:
            numbers[output.name] = len(numbers)
            computed.append((output.dtype, output.width))
        names = [*step.inputs, *(output.name for output in step.outputs)]
        calls.append(Call(functions.name(step.function), tuple(numbers[name] for name in names)))
    return Form(
        int(ir.DataType.from_numpy(np.dtype(dtype))),
        dtype,
        0 if node.gathers else node.in_features,
        tuple(stored.values()),
        tuple(computed),
        tuple(calls),
    )


def _index_dtype(node: StructuredNode) -> str:
    indices = node.node.inputs[0]
    known = None if indices is None else indices.dtype
    return "int64" if known is None else known.numpy().name
