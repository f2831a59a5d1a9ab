"""`Builder`: what operator families emit with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
import tvm_ffi
from tvm import relax, te, tirx
from tvm.relax.expr import te_tensor
from tvm.te import create_prim_func

from ..kernels.base import Step
from ..kernels.emit import emit
from ..kernels.gpu import on_gpu
from ..kernels.mathematics import dtype_of
from ..kernels.targets import Workload, asked
from .dimensions import Dimensions, extent
from .parameters import Make, Parameters
from .values import HALVES, Dim, Value, channels_second, known
from .work import Work

_EMBEDDED = 16
"""Constants up to this many elements are part of the code; larger ones are parameters."""

OUT_ELEMENTWISE_FUSABLE = 4
"""Relax's operator pattern for "element-wise consumers may be fused behind it"."""


class Builder(Dimensions):
    """Emits Relax bindings for `Value`s.

    Attributes:
        block: the Relax builder, inside the dataflow block of `main`.
        parameters: what `main` takes behind its inputs.
        packed: the parameters of sites by suffix.
        products: steps that take a finish, by the name of their PrimFunc.
        work: how the steps of each kernel with tilings are made.
        tied: names of weights that are gathered from and, transposed, multiplied with.
        libraries: that functions call, by their names in `-libs=` of a target.
    """

    def __init__(
        self,
        block: relax.BlockBuilder,
        names: Set[str],
        bounds: Mapping[str, tuple[int, int | None]],
        tied: Set[str],
    ) -> None:
        super().__init__(names, bounds)
        self.block = block
        self.parameters = Parameters()
        self.packed: dict[str, dict[str, Any]] = {}
        self.products: dict[str, Step] = {}
        self.work: dict[Workload, Work] = {}
        self.tied = tied
        self.libraries: set[str] = set()

    def tensor(self, value: Value) -> Any:
        """The Relax expression of a value; host values become constants or parameters."""
        if value.expr is not None:
            return value.expr
        if value.symbolic:
            return self.materialise(value).expr
        assert value.host is not None
        if value.host.size <= _EMBEDDED:
            return relax.const(np.asarray(value.host, order="C"), value.dtype)
        host, name = value.host, value.name
        return self.parameters.variable(name, host.shape, value.dtype, lambda: host, name)

    def stored(self, source: str, form: str, shape: Sequence[int], dtype: str, make: Make) -> Value:
        """A form of the site or constant `source`, made when the weights are."""
        name = f"{source}.{form}"
        variable = self.parameters.variable(name, shape, dtype, make, source)
        return Value(dtype, tuple(shape), expr=variable, name=name)

    def call(
        self,
        name: str,
        function: Any,
        shape: Sequence[Dim],
        *values: Value,
        product: Step | None = None,
        dtype: str = "float32",
        workspace: Sequence[int] | None = None,
    ) -> Value:
        """The output, of that shape and type, of a scheduled PrimFunc.

        Args:
            name: hint for its name.
            function: it.
            shape: of the output.
            values: that it takes.
            product: its step, if that takes a finish.
            dtype: of the output.
            workspace: shape of float32 that it takes behind the output, for itself, if it does.
        """
        out = relax.TensorType([extent(dim) for dim in shape], dtype)
        arguments = [self.tensor(value) for value in values]
        variable = self.block.add_func(function, name)
        if product is not None:
            self.products[variable.name_hint] = product
        if workspace is None:
            call = relax.call_tir(variable, arguments, out)
            return Value(dtype, tuple(shape), expr=self.block.emit(call, name))
        own = relax.TensorType([extent(dim) for dim in workspace], "float32")
        outputs = self.block.emit(relax.call_tir(variable, arguments, [out, own]), name)
        expr = self.block.emit(relax.TupleGetItem(outputs, 0), name)
        return Value(dtype, tuple(shape), expr=expr)

    def steps(
        self,
        make: Callable[[], Sequence[Step]],
        x: Value,
        packed: Mapping[str, Any],
        *,
        features: int = 1,
    ) -> Value:
        """The output of the last step that `make`, a kernel, makes."""
        with asked() as tilings:
            steps = make()
        result = emit(
            self.block, steps, self.tensor(x), packed, features=features, products=self.products
        )
        for workload, tiling in tilings.items():
            if workload not in self.work:
                stored = {
                    suffix: (tuple(int(dim) for dim in tensor.ty.shape), str(tensor.ty.dtype))
                    for suffix, tensor in packed.items()
                }
                self.work[workload] = Work(tiling, make, int(x.shape[-1]), x.dtype, stored)
        return self.emit(result)

    def materialise(self, value: Value) -> Value:
        """A host value of symbolic entries as a run-time tensor."""
        assert value.host is not None
        entries = list(value.host.flat)

        def compute(shape: list[Any], entries: list[Any]) -> Any:
            def entry(*index: Any) -> Any:
                flat = _flat_index(index, shape)
                result = _integer(entries[-1], value.dtype)
                for position in reversed(range(len(entries) - 1)):
                    result = tirx.Select(
                        flat == position, _integer(entries[position], value.dtype), result
                    )
                return result

            return te.compute([extent(dim) for dim in shape], entry, name="shape")

        return self.te("shape", compute, list(value.shape), entries)

    def emit(self, expression: Any, name: str = "") -> Value:
        """Binds a Relax expression whose type has a known shape."""
        variable = self.block.emit(expression, name)
        shape = tuple(self.simplify(dim) for dim in variable.ty.shape)
        return Value(str(variable.ty.dtype), shape, expr=variable)

    def te(
        self,
        name: str,
        compute: Callable[..., Any],
        *arguments: Any,
        attributes: dict[str, Any] | None = None,
    ) -> Value:
        """Emits a tensor expression as its own PrimFunc; equal ones are shared.

        Unlike `BlockBuilder.emit_te` the order of the symbolic arguments is fixed, so that the
        same model gives the same code.

        Args:
            name: hint for the name of the PrimFunc.
            compute: takes the arguments with each `Value` as a TE tensor and each expression over
                the PrimFunc's own variables; returns one TE tensor. It must not capture symbolic
                expressions.
            arguments: Values, ints, strings, expressions and nested lists of them.
            attributes: attributes of the PrimFunc.
        """
        inner: dict[Any, Any] = {}
        tensors: list[Any] = []
        placeholders: list[Any] = []
        free: list[Any] = []

        def translate(expression: Any) -> Any:
            def visit(variable: Any) -> None:
                if variable not in inner:
                    inner[variable] = tirx.Var(variable.name, "int64")

            tvm_ffi.structural_walk(expression, (tirx.Var, visit), order="post")
            return _substitute(expression, inner)

        def convert(argument: Any) -> Any:
            if isinstance(argument, Value):
                expression = self.tensor(argument)
                for dim in expression.ty.shape:
                    translate(dim)
                placeholder = te_tensor(expression, inner, f"x{len(tensors)}")
                tensors.append(expression)
                placeholders.append(placeholder)
                return placeholder
            if isinstance(argument, list | tuple):
                return [convert(item) for item in argument]
            if isinstance(argument, tirx.Expr):
                free.append(translate(argument))
                return free[-1]
            return argument

        result = compute(*[convert(argument) for argument in arguments])
        outer = {mine: theirs for theirs, mine in inner.items()}
        used = [*free, *(dim for tensor in [*placeholders, result] for dim in tensor.shape)]
        bound = {dim for tensor in placeholders for dim in tensor.shape if dim in outer}
        wanted = {v for item in used for v in tirx.analysis.undefined_vars(item)} - bound
        unbound = sorted(wanted, key=lambda variable: str(variable.name))
        function = create_prim_func([*placeholders, *unbound, result], "int64")
        if attributes:
            function = function.with_attrs(attributes)
        function = function.without_attr("global_symbol")
        shape = [self.simplify(_substitute(dim, outer)) for dim in result.shape]
        call = relax.call_tir(
            self.block.add_func(function, name),
            [*tensors, *(outer[variable] for variable in unbound)],
            relax.TensorType([extent(dim) for dim in shape], result.dtype),
        )
        return Value(str(result.dtype), tuple(shape), expr=self.block.emit(call, name))

    def elementwise(
        self,
        name: str,
        function: Callable[..., Any],
        *values: Value,
        shape: Sequence[Dim] = (),
        widen: bool = True,
    ) -> Value:
        """`function` of broadcast values, entry by entry; scalars known here become immediates.

        The result has at least `shape`, if given. With `widen` half precision is computed in
        float32 and rounded once.
        """
        order = None if shape else _moved_channels(values)
        if order is not None:
            before = [base for value in values if (base := self._before(value, order))]
            if len(before) == len(values):
                return self.transpose(self.elementwise(name, function, *before), order)
        shape = self.broadcast(*[value.shape for value in values], shape)
        readings = [self.reading(value.shape, shape) for value in values]

        def compute(shape: list[Any], *operands: Any) -> Any:
            def entry(*index: Any) -> Any:
                given = [
                    _operand(operand, value, reading, index)
                    for operand, value, reading in zip(operands, values, readings, strict=True)
                ]
                return _rounded_once(function, given) if widen else function(*given)

            return te.compute([extent(dim) for dim in shape], entry, name=name)

        operands = [_scalar(value) if _is_scalar(value) else value for value in values]
        return self.te(name, compute, list(shape), *operands)

    def _before(self, value: Value, order: tuple[int, ...]) -> Value | None:
        """What `value`, or what it is broadcast to, is a transposition of; None if it is not."""
        if value.permuted is not None and value.permuted[1] == order:
            return value.permuted[0]
        if not value.static or value.rank > len(order):
            return None
        whole = self.reshape(value, [*[1] * (len(order) - value.rank), *value.shape])
        return self.transpose(whole, [order.index(axis) for axis in range(len(order))])

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another dtype."""
        if value.dtype == dtype:
            return value
        if value.static:
            assert value.host is not None
            return known(value.host.astype(dtype), dtype, f"{value.name}.{dtype}")
        if value.widened is not None and value.widened.dtype == dtype:
            return value.widened
        result = self.elementwise("cast", lambda x: x.astype(dtype), value, widen=False)
        if value.dtype in HALVES and dtype == "float32":
            return replace(result, widened=value)
        return result

    def multiplied(self, value: Value) -> Value:
        """The value in the type that kernels of products take it in.

        On a GPU it is its own; a half that was only widened for the product is taken as it was.
        """
        if on_gpu():
            return value.widened or value
        return self.cast(value, "float32")

    def reshape(self, value: Value, shape: Sequence[Dim]) -> Value:
        """The same entries in another shape, without a copy."""
        if len(shape) == value.rank and all(map(self.same, shape, value.shape)):
            return value
        if value.host is not None:
            return known(value.host.reshape([int(dim) for dim in shape]), value.dtype, value.name)
        expression = relax.op.reshape(value.expr, relax.ShapeExpr([extent(dim) for dim in shape]))
        variable = self.block.emit(expression)
        return Value(value.dtype, tuple(shape), expr=variable)

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """The axes in another order."""
        if list(axes) == list(range(value.rank)):
            return value
        if value.host is not None:
            suffix = "transposed" if value.rank == 2 else "transposed." + "".join(map(str, axes))
            return known(np.transpose(value.host, axes), value.dtype, f"{value.name}.{suffix}")
        if value.permuted is not None:
            base, before = value.permuted
            return self.transpose(base, [before[axis] for axis in axes])
        result = self.emit(relax.op.permute_dims(value.expr, list(axes)))
        return replace(result, permuted=(value, tuple(axes)))


def _moved_channels(values: Sequence[Value]) -> tuple[int, ...] | None:
    """The axes by which channels were moved from the last place to the second.

    Work entry by entry is done before that, so that the kernel whose output it is can finish it.
    """
    rank = max(value.rank for value in values)
    order = channels_second(rank)
    moved = (value.permuted is not None and value.permuted[1] == order for value in values)
    return order if rank > 2 and any(moved) else None


def _substitute(expression: Any, mapping: dict[Any, Any]) -> Any:
    if isinstance(expression, int):
        return expression
    return tvm_ffi.structural_map(
        expression, (tirx.Var, lambda variable: mapping.get(variable, variable)), order="post"
    )


def _integer(entry: Any, dtype: str) -> Any:
    return tirx.const(entry, dtype) if isinstance(entry, int) else entry.astype(dtype)


def _is_scalar(value: Value) -> bool:
    return value.host is not None and value.host.size == 1


def _rounded_once(function: Callable[..., Any], given: Sequence[Any]) -> Any:
    """`function` of float32 operands where they are halves, and its float32 result as one."""
    halves = [dtype for x in given if (dtype := dtype_of(x)) in HALVES]
    if not halves:
        return function(*given)
    wide = [x.astype("float32") if dtype_of(x) in HALVES else x for x in given]
    result = function(*wide)
    narrow = len(halves) == sum(dtype_of(x) in (*HALVES, "float32") for x in given)
    return result.astype(halves[0]) if narrow and dtype_of(result) == "float32" else result


def _scalar(value: Value) -> Any:
    assert value.host is not None
    entry = value.host.reshape(-1)[0]
    return entry if value.symbolic else value.host.reshape(-1)[0].item()


def _operand(operand: Any, value: Value, reading: Callable[..., Any], index: Any) -> Any:
    if _is_scalar(value):
        if isinstance(operand, tirx.Expr):
            return operand.astype(value.dtype)
        return tirx.const(operand, value.dtype)
    return operand(*reading(index, operand.shape))


def _flat_index(index: Sequence[Any], shape: Sequence[Any]) -> Any:
    flat: Any = tirx.const(0, "int64")
    for position, dim in zip(index, shape, strict=True):
        flat = flat * dim + position
    return flat
