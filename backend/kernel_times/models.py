"""Small models to time: some copies of one layer, and the same calls with nothing to compute."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes.errors import InputError, SchemeError
from ...passes.fit import factor_type, packed
from ...passes.plan import Choice, Plan
from ...passes.replace import Fitted, ReplaceDense
from ...passes.scheme import parse_scheme
from ...passes.sites import find_sites
from ...passes.structures.base import Form, Structure
from .layer import DENSE, Layer

INPUT = "x"

_ROWS = "rows"
_OPSET, _IR_VERSION = 21, 10


def layer_model(layer: Layer, copies: int, form: Form, *, seed: int = 0) -> ir.Model:
    """A model of `copies` layers that read one x, each with weights of its own.

    One entry of each y is an output: the rest is dropped where it was computed, as in a model,
    where the next operator reads it from a cache. Convolutions are summed up before.

    Raises:
        InputError: a layer too small to be replaced.
    """
    size = layer.out_features * layer.in_features
    # Overlapping parts of one row of numbers are as good as many matrices, and drawn once.
    drawn = np.random.default_rng(seed).standard_normal(size + copies, np.float32)
    drawn /= np.float32(math.sqrt(layer.in_features))
    values = drawn.astype(layer.element_type.numpy(), copy=False)
    shape: tuple[int, ...] = (layer.out_features, layer.in_features)
    if layer.gathers:
        x = _value(INPUT, ir.DataType.INT64, _ROWS)
    else:
        x = _value(INPUT, layer.element_type, *_activations(layer, layer.in_features, _ROWS))
        shape = (*shape, 1, 1) if layer.convolves else shape[::-1]

    def computed(tape: ir.tape.Tape, copy: int) -> ir.Value:
        weight = tape.initializer(ir.tensor(values[copy : copy + size].reshape(shape)), _site(copy))
        if layer.gathers:
            y, width = tape.op("Gather", [weight, x]), layer.in_features
        else:
            inputs = [x, weight]
            y, width = tape.op("Conv" if layer.convolves else "MatMul", inputs), layer.out_features
        y.dtype, y.shape = layer.element_type, ir.Shape(_activations(layer, width, _ROWS))
        return y

    def summed(tape: ir.tape.Tape, _: int) -> ir.Value:
        products = [computed(tape, copy) for copy in range(copies)]
        y = functools.reduce(lambda total, found: tape.op("Add", [total, found]), products)
        y.type, y.shape = products[0].type, products[0].shape
        return y

    if layer.convolves:
        # As in a model what reads y is an operator with channels in blocks, as the kernel has them.
        model = _model(x, 1, summed, lambda copy: 0)
    else:
        model = _model(x, copies, computed, lambda copy: 0)
    if layer.scheme != DENSE:
        _replace(model, layer, form, seed)
    return model


def empty_model(layer: Layer, copies: int) -> ir.Model:
    """The same inputs and outputs, with nothing between them: the fixed cost of a call."""
    x = _value(INPUT, layer.element_type, *_activations(layer, layer.in_features, _ROWS))
    return _model(x, 1 if layer.convolves else copies, lambda tape, copy: x, lambda copy: copy)


def inputs_for(layer: Layer, rows: int, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs of `layer_model`."""
    random = np.random.default_rng(seed)
    if layer.gathers:
        return {INPUT: random.integers(0, layer.out_features, rows)}
    return empty_inputs(layer, rows, seed=seed)


def empty_inputs(layer: Layer, rows: int, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs of `empty_model`."""
    shape = _activations(layer, layer.in_features, rows)
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return {INPUT: x.astype(layer.element_type.numpy(), copy=False)}


def structure_of(layer: Layer) -> Structure:
    """The structure of a layer that is not dense.

    Raises:
        SchemeError: `auto`, or a text that is not understood.
        FitError: the shape does not admit it.
    """
    scheme = parse_scheme(layer.scheme)
    if not isinstance(scheme, Structure):
        raise SchemeError(f"{layer}: only a resolved structure or dense has a kernel to time")
    return scheme.resolve(layer.out_features, layer.in_features, site=str(layer))


def bytes_of(layer: Layer) -> int:
    """Of the weights of one copy."""
    shape = layer.out_features, layer.in_features
    if layer.scheme == DENSE:
        return math.ceil(math.prod(shape) * layer.element_type.itemsize)
    return math.ceil(structure_of(layer).bits(*shape) / 8)


def activation_bytes(layer: Layer, rows: int) -> int:
    """Of y, and of x as a structure changes it, for one copy: others use the same memory again."""
    features = layer.out_features + layer.in_features
    return math.ceil(rows * features * layer.element_type.itemsize)


Length = TypeVar("Length", int, str)


def _activations(layer: Layer, features: int, rows: Length) -> tuple[int | Length, ...]:
    """The shape of x or y."""
    return (1, features, 1, rows) if layer.convolves else (rows, features)


def _model(
    x: ir.Value,
    copies: int,
    computed: Callable[[ir.tape.Tape, int], ir.Value],
    column: Callable[[int], int],
) -> ir.Model:
    """Reads one entry, of row 0 and a column, of each of some matrices computed from x."""
    tape, outputs = ir.tape.Tape(), []
    for copy in range(copies):
        y, place = computed(tape, copy), column(copy)
        bounds = [
            tape.initializer(ir.tensor(np.array([0, place]) + end), f"{name}.{copy}")
            for name, end in (("start", 0), ("end", 1))
        ]
        entry = tape.op("Slice", [y, *bounds])
        assert y.shape is not None
        entry.shape = ir.Shape([1, 1, *y.shape[2:]])
        entry.name, entry.type = f"entry.{copy}", y.type
        outputs.append(entry)
    graph = ir.Graph(
        [x],
        outputs,
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": _OPSET},
        name="layers",
    )
    return ir.Model(graph, ir_version=_IR_VERSION)


def _replace(model: ir.Model, layer: Layer, form: Form, seed: int) -> None:
    """Puts the structure of a layer in the place of all copies; each stores its own tensors."""
    structure = structure_of(layer)
    shape = layer.out_features, layer.in_features
    sites, refusals = find_sites(model)
    if not sites:
        raise InputError(f"{layer}: no plan replaces it ({refusals[0].reason}); leave it out")
    # One set of values does: engines store and read the tensors of each site apart.
    factors = structure.random_factors(*shape, seed=seed)
    dtype = factor_type(sites[0], form)
    tensors = packed(structure, factors, form, dtype, sites[0].name)
    choices = tuple(Choice(site.name, *shape[::-1], str(structure)) for site in sites)
    fitted = {site.name: Fitted(structure, tensors) for site in sites}
    ReplaceDense(Plan(choices), fitted, form)(model)


def _value(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _site(copy: int) -> str:
    return f"layer.{copy}"
