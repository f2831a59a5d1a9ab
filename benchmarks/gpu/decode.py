"""A Llama-shaped model of one billion parameters, one token at a time: its graph, and its case.

16 layers, 2048 features, 8192 inside, 32 heads of 64 that share 8 of keys and values, a vocabulary
of 128256 whose embedding is the head too. The head is part of the step. Weights have shapes and no
values: a dense one is a single zero seen as a matrix, structured ones of a shape share tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir import tape
from undense.backend.kernels.cuda.dtypes import activation
from undense.backend.relax_build.compile import Code, build_code
from undense.backend.target import Target
from undense.passes.nodes import metadata
from undense.passes.scheme import parse_scheme
from undense.passes.structures.base import DOMAIN, Factors

from .products import coded_weight, dense_weight
from .runner.spec import Call, Case, Tensor, Weight

_OPSET = 23
_EPSILON = 1e-5
_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Shape:
    """Of the model."""

    layers: int = 16
    hidden: int = 2048
    inner: int = 8192
    heads: int = 32
    shared: int = 8
    size: int = 64
    vocabulary: int = 128256


def decode_case(
    scheme: str, head: str, dtype: str, target: Target, shape: Shape = Shape(), past: int = 2047
) -> tuple[Case, Code]:
    """A step of the model, compiled.

    Args:
        scheme: of the layers' products, or `dense`.
        head: of the embedding and the head, or `dense`.
        dtype: of activations, cache and dense weights.
        target: to compile for.
        shape: of the model.
        past: tokens in the cache.
    """
    graph = _Graph(shape, scheme, head, dtype)
    code = build_code(graph.model(), target)
    parameters = [str(variable.name) for variable in code.walk.builder.parameters.variables]
    weights = [_held(weight, parameters) for weight in graph.weights]
    inputs = tuple(
        Tensor(signature.name, tuple(signature.shape), signature.dtype)
        for signature in code.walk.inputs
    )
    outputs = tuple(
        Tensor(signature.name, _lengths(signature.shape), signature.dtype)
        for signature in code.walk.outputs
    )
    facts = asdict(shape) | {"epsilon": _EPSILON, "head": head}
    case = Case(
        name=f"decode 1b {scheme} head {head} {dtype}",
        kind="decode",
        structure=scheme,
        dtype=dtype,
        library="",
        engine="vm",
        weights=tuple(weights),
        inputs=inputs,
        calls=(Call("main", (*(t.name for t in inputs), *parameters), outputs),),
        result="logits",
        sizes=({"past": past},),
        facts=facts,
    )
    return case, code


def _held(weight: Weight, parameters: Sequence[str]) -> Weight:
    """The weight, after a check that its tensors are those that the code takes."""
    missing = [tensor.name for tensor in weight.tensors if tensor.name not in parameters]
    if missing:
        raise ValueError(f"{weight.name}: the code takes no {', '.join(missing)}")
    return weight


def _lengths(shape: Sequence[int | str]) -> tuple[int | str, ...]:
    """A shape whose computed lengths have one name: the virtual machine makes these tensors."""
    return tuple(dim if isinstance(dim, int) else "present" for dim in shape)


class _Graph:
    """Builds the graph, and notes what its weights are stored as."""

    def __init__(self, shape: Shape, scheme: str, head: str, dtype: str) -> None:
        self.shape, self.scheme, self.head, self.dtype = shape, scheme, head, dtype
        known = activation(dtype)
        assert known is not None
        self.activation = known
        self.tape = tape.Tape()
        self.weights: list[Weight] = []
        self.inputs: list[ir.Value] = []
        self.initializers: dict[str, ir.Value] = {}

    def model(self) -> ir.Model:
        shape = self.shape
        token = self._input("token", [1, 1], ir.DataType.INT64)
        half = [1, 1, shape.size // 2]
        self.cosine, self.sine = self._input("cosine", half), self._input("sine", half)
        x = self._embedded(token)
        outputs = []
        for layer in range(shape.layers):
            x, present = self._layer(x, layer)
            outputs += present
        logits = self._logits(self._normalised(x, "norm"))
        logits.name = "logits"
        graph = ir.Graph(
            self.inputs,
            [logits, *outputs],
            nodes=self.tape.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": _OPSET, DOMAIN: 1},
            name="decode",
        )
        return ir.Model(graph, ir_version=10)

    def _layer(self, x: ir.Value, number: int) -> tuple[ir.Value, list[ir.Value]]:
        shape, prefix = self.shape, f"layer{number}"
        wide, narrow = shape.heads * shape.size, shape.shared * shape.size
        h = self._normalised(x, f"{prefix}.attention_norm")
        query = self._rotated(self._linear(h, f"{prefix}.query", wide), shape.heads)
        key = self._rotated(self._linear(h, f"{prefix}.key", narrow), shape.shared)
        value = self._linear(h, f"{prefix}.value", narrow)
        past: list[int | str] = [1, shape.shared, "past", shape.size]
        caches = [self._input(f"past_{side}{number}", past) for side in ("key", "value")]
        attended, *present = self.tape.op_multi_out(
            "Attention",
            [query, key, value, None, *caches],
            {"q_num_heads": shape.heads, "kv_num_heads": shape.shared},
            num_outputs=3,
        )
        for value, side in zip(present, ("key", "value"), strict=True):
            value.name = f"present_{side}{number}"
        x = self._op("Add", x, self._linear(attended, f"{prefix}.output", shape.hidden, wide))
        h = self._normalised(x, f"{prefix}.feed_forward_norm")
        gate = self._linear(h, f"{prefix}.gate", shape.inner)
        gate = self._op("Mul", gate, self._op("Sigmoid", gate))
        inner = self._op("Mul", gate, self._linear(h, f"{prefix}.up", shape.inner))
        down = self._linear(inner, f"{prefix}.down", shape.hidden, shape.inner)
        return self._op("Add", x, down), present

    def _embedded(self, token: ir.Value) -> ir.Value:
        if self.head == "dense":
            return self._op("Gather", self._zeros("embedding", self._table), token)
        return self._structured(token, "embedding", self.head, self._table, gathers=True)

    def _logits(self, x: ir.Value) -> ir.Value:
        if self.head == "dense":
            table = self.initializers["embedding"]
            transposed = self.tape.op("Transpose", [table], {"perm": [1, 0]})
            self._note_dense("embedding", "embedding.transposed", self._table)
            return self._op("MatMul", x, transposed)
        return self._structured(x, "embedding", self.head, self._table)

    @property
    def _table(self) -> tuple[int, int]:
        return self.shape.vocabulary, self.shape.hidden

    def _linear(self, x: ir.Value, site: str, width: int, depth: int | None = None) -> ir.Value:
        shape = (width, depth or self.shape.hidden)
        if self.scheme != "dense":
            return self._structured(x, site, self.scheme, shape)
        self._note_dense(site, site, shape)
        return self._op("MatMul", x, self._zeros(site, shape[::-1]))

    def _note_dense(self, name: str, constant: str, shape: tuple[int, int]) -> None:
        tensors = (f"{constant}.fragments",)
        self.weights.append(dense_weight(name, tensors, self.activation, 1, *shape))

    def _structured(
        self, x: ir.Value, site: str, scheme: str, shape: tuple[int, int], *, gathers: bool = False
    ) -> ir.Value:
        structure, tensors = _packed(scheme, shape)
        values = []
        for suffix, tensor in tensors.items():
            name = f"{site}.{suffix}"
            if name not in self.initializers:
                self.initializers[name] = ir.Value(
                    name=name, const_value=tensor, type=ir.TensorType(tensor.dtype)
                )
            values.append(self.initializers[name])
        if not gathers:
            self._note_structured(site, structure, shape)
        suffix = "Gather" if gathers else ""
        wide = self._wide(x, site, gathers=gathers)
        y = self.tape.op(
            f"{structure.op_type}{suffix}",
            [wide, *values],
            domain=DOMAIN,
            metadata_props=metadata(site, structure, *shape),
        )
        return self._narrow(y)

    def _wide(self, x: ir.Value, site: str, *, gathers: bool) -> ir.Value:
        """Factors are float32 in a graph, and so is what a structured node takes and gives."""
        if gathers:
            return x
        return self.tape.op("Cast", [x], {"to": ir.DataType.FLOAT})

    def _narrow(self, y: ir.Value) -> ir.Value:
        return self.tape.op("Cast", [y], {"to": _TYPES[self.dtype]})

    def _note_structured(self, site: str, structure: Any, shape: tuple[int, int]) -> None:
        tensors = [f"{site}.{suffix}" for suffix in ("codes", "scales", "unit")]
        self.weights.append(coded_weight(site, tensors, self.activation, structure, *shape))

    def _normalised(self, x: ir.Value, name: str) -> ir.Value:
        scale = self._zeros(name, (self.shape.hidden,))
        tensor = Tensor(name, (self.shape.hidden,), self.dtype)
        self.weights.append(Weight(name, "plain", (tensor,)))
        return self.tape.op("RMSNormalization", [x, scale], {"axis": -1, "epsilon": _EPSILON})

    def _rotated(self, x: ir.Value, heads: int) -> ir.Value:
        inputs = [x, self.cosine, self.sine]
        return self.tape.op("RotaryEmbedding", inputs, {"num_heads": heads})

    def _op(self, name: str, *inputs: ir.Value) -> ir.Value:
        return self.tape.op(name, list(inputs))

    def _input(
        self, name: str, shape: Sequence[int | str], dtype: ir.DataType | None = None
    ) -> ir.Value:
        kind = ir.TensorType(dtype or _TYPES[self.dtype])
        value = ir.Value(name=name, shape=ir.Shape(shape), type=kind)
        self.inputs.append(value)
        return value

    def _zeros(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        zero = np.zeros((), ml_dtypes.bfloat16 if self.dtype == "bfloat16" else np.float16)
        tensor = ir.Tensor(np.broadcast_to(zero, shape), dtype=_TYPES[self.dtype], name=name)
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=tensor.shape, type=kind, const_value=tensor)
        self.initializers[name] = value
        return value


@cache
def _packed(scheme: str, shape: tuple[int, int]) -> tuple[Any, dict[str, ir.TensorProtocol]]:
    """A structure for a shape and the tensors of a node, of codes of zero."""
    structure: Any = parse_scheme(scheme)
    structure = structure.resolve(*shape, site=scheme)
    groups = -(-shape[1] // structure.group)
    zeros: Factors = {
        "codes": np.zeros(shape, np.int8),
        "scales": np.ones((shape[0], groups), "f4"),
    }
    return structure, structure.pack(zeros, "fast")
