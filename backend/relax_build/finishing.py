"""Moves entry-wise operators into the kernels whose outputs they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir.expr import TensorLoad
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from ..kernels.base import Step
from ..kernels.finish import Finish
from ..kernels.lowering import is_scheduled
from ..kernels.tir import Argument, load

_CALL_TIR = tvm.ir.Op.get("relax.call_tir")
_RESHAPE = tvm.ir.Op.get("relax.reshape")


def finish_products(module: Any, products: Mapping[str, Step]) -> Any:
    """The module with every entry-wise function, whose input only it takes from a kernel, in it."""
    main = module["main"]
    found = _Finder(module, products).find(main)
    if not found:
        return module
    rewriter = _Rewriter(module, found)
    for variable, function in module.functions.items():
        if isinstance(function, relax.Function):
            rewriter.builder_.update_func(variable, rewriter.visit_expr(function))
    return relax.transform.DeadCodeElimination()(rewriter.builder_.get())


@dataclass(frozen=True, eq=False)
class _Fusion:
    """A call of an entry-wise function and the kernel's call that it follows.

    Attributes:
        step: the kernel's.
        kernel: the call of the kernel.
        entry: the function as one expression.
        taken: which of its buffers is the kernel's output.
    """

    step: Step
    kernel: Any
    entry: _Entry
    taken: int


@dataclass(frozen=True, eq=False)
class _Entry:
    """A function that computes each entry of its output from entries of its inputs.

    Attributes:
        buffers: of its parameters, the output last.
        axes: the variables of the output's axes.
        value: the expression of an entry.
    """

    buffers: list[Any]
    axes: list[Any]
    value: Any


def _entry(function: Any) -> _Entry | None:
    """The function as one expression; None where it is not entry-wise or takes further symbols."""
    symbols = any(tvm.ir.is_prim_var(parameter) for parameter in function.params)
    if symbols or is_scheduled(function):
        return None
    schedule = Schedule(tvm.IRModule({"main": function}))
    try:
        *middle, _ = schedule.get_child_blocks(schedule.get_sblock("root"))
        for block in middle:
            schedule.compute_inline(block)
    except ScheduleError:
        return None
    (last,) = schedule.get_child_blocks(schedule.get_sblock("root"))
    block, buffers = schedule.get(last), list(schedule.mod["main"].params)
    store = block.body
    axes = [axis.var for axis in block.iter_vars]
    if not isinstance(store, tirx.BufferStore) or block.init is not None:
        return None
    if any(int(axis.iter_type) != 0 for axis in block.iter_vars):
        return None
    if not _same(list(store.indices), axes):
        return None
    if not buffers or not store.buffer.same_as(buffers[-1]):
        return None
    return _Entry(buffers, axes, store.value)


def _same(indices: Sequence[Any], axes: Sequence[Any]) -> bool:
    return len(indices) == len(axes) and all(
        isinstance(index, tirx.Var) and index.same_as(axis)
        for index, axis in zip(indices, axes, strict=True)
    )


class _Finder:
    """Finds what can be fused in one function."""

    def __init__(self, module: Any, products: Mapping[str, Step]) -> None:
        self.module, self.products = module, products
        self.bound: dict[Any, Any] = {}
        self.uses: dict[Any, int] = {}
        self.entries: dict[str, _Entry | None] = {}

    def find(self, function: Any) -> dict[Any, _Fusion]:
        """The fusions by the variable that the entry-wise call is bound to."""
        bindings = [binding for block in function.body.blocks for binding in block.bindings]
        for binding in bindings:
            self.bound[binding.var] = binding.value
            self._count(binding.value)
        self._count(function.body.body)
        found: dict[Any, _Fusion] = {}
        taken: set[Any] = set()
        for binding in bindings:
            fusion = self._fusion(binding.value)
            if fusion is not None and fusion.kernel not in taken:
                taken.add(fusion.kernel)
                found[binding.var] = fusion
        return found

    def _count(self, expression: Any) -> None:
        def visit(node: Any) -> None:
            if isinstance(node, relax.Var):
                self.uses[node] = self.uses.get(node, 0) + 1

        relax.analysis.post_order_visit(expression, visit)

    def _fusion(self, call: Any) -> _Fusion | None:
        if not isinstance(call, relax.Call) or call.op != _CALL_TIR or len(call.args) > 2:
            return None
        name = call.args[0].name_hint
        if name in self.products:
            return None
        if name not in self.entries:
            self.entries[name] = _entry(self.module[name])
        entry = self.entries[name]
        if entry is None or not isinstance(call.ty, relax.TensorType):
            return None
        for index, argument in enumerate(call.args[1].fields):
            kernel = self._kernel(argument)
            if kernel is None or not _fits(entry, index):
                continue
            return _Fusion(self.products[kernel.args[0].name_hint], kernel, entry, index)
        return None

    def _kernel(self, argument: Any) -> Any:
        """The call of a kernel that an argument is the only use of, reshapes between them."""
        while isinstance(argument, relax.Var) and self.uses.get(argument) == 1:
            value = self.bound.get(argument)
            if not isinstance(value, relax.Call):
                return None
            if value.op == _RESHAPE:
                argument = value.args[0]
                continue
            if value.op == _CALL_TIR and value.args[0].name_hint in self.products:
                return value
            return None
        return None


def _fits(entry: _Entry, taken: int) -> bool:
    """Whether the kernel's columns are the last axis, and all else is read entry by entry."""
    output = entry.buffers[-1]
    if not _equal_shapes(entry.buffers[taken], output):
        return False
    fits = True

    def visit(read: Any) -> None:
        nonlocal fits
        if _same(list(read.indices), entry.axes) and _equal_shapes(read.source, output):
            return
        if read.source.same_as(entry.buffers[taken]) or not _by_column(read, entry):
            fits = False

    tvm_ffi.structural_walk(entry.value, (TensorLoad, visit), order="post")
    return fits and set(tirx.analysis.undefined_vars(entry.value)) <= {
        *entry.axes,
        *entry.buffers,
    }


def _equal_shapes(one: Any, other: Any) -> bool:
    first, second = (getattr(item, "shape", None) or item.values for item in (one, other))
    return len(first) == len(second) and all(
        tvm_ffi.structural_equal(a, b) for a, b in zip(first, second, strict=True)
    )


def _by_column(read: Any, entry: _Entry) -> bool:
    """Whether a read depends on nothing but the last axis."""
    if not all(isinstance(length, tirx.IntImm) for length in read.source.shape):
        return False
    used = {variable for index in read.indices for variable in tirx.analysis.undefined_vars(index)}
    return used <= {entry.axes[-1]}


@mutator
class _Rewriter(PyExprMutator):  # type: ignore[misc]
    """Replaces the calls of entry-wise functions by those of the kernels that finish with them."""

    def __init__(self, module: Any, fusions: Mapping[Any, _Fusion]) -> None:
        super().__init__(module)
        self.fusions = fusions
        self.functions: dict[tuple[str, str, int], Any] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        """Replaces the binding of a fusion."""
        fusion = self.fusions.get(binding.var)
        if fusion is None:
            super().visit_var_binding_(binding)
            return
        value = self.builder_.emit(self._call(fusion, binding.value))
        if len(binding.var.ty.shape) != 2:
            value = self.builder_.emit(relax.op.reshape(value, binding.var.ty.shape))
        self.set_var_remap(binding.var, value)

    def visit_call_(self, call: Any) -> Any:
        """Takes a reshape from what was reshaped before it."""
        call = super().visit_call_(call)
        if call.op != _RESHAPE:
            return call
        source = call.args[0]
        while isinstance(source, relax.Var):
            value = self.builder_.lookup_binding(source)
            if not isinstance(value, relax.Call) or value.op != _RESHAPE:
                break
            source = value.args[0]
        if source.same_as(call.args[0]):
            return call
        if _equal_shapes(source.ty, call.args[1]):
            return source
        return relax.op.reshape(source, call.args[1])

    def _call(self, fusion: _Fusion, call: Any) -> Any:
        rows, width = fusion.kernel.ty.shape
        arguments = [self.visit_expr(field) for field in fusion.kernel.args[1].fields]
        others = []
        for index, field in enumerate(call.args[1].fields):
            if index == fusion.taken:
                continue
            other = self.visit_expr(field)
            whole = _equal_shapes(fusion.entry.buffers[index], fusion.entry.buffers[-1])
            if whole and len(field.ty.shape) != 2:
                other = self.builder_.emit(relax.op.reshape(other, [rows, width]))
            others.append(other)
        dtype = call.ty.dtype
        names = fusion.kernel.args[0].name_hint, call.args[0].name_hint
        key = (*names, fusion.taken)
        if key not in self.functions:
            assert fusion.step.finish is not None
            function = fusion.step.finish(_finish(fusion, int(width), str(dtype)))
            name = f"{names[0]}_{names[1].removeprefix('fused_')}"
            self.functions[key] = self.builder_.add_func(function, name)
        variable = self.functions[key]
        out = relax.TensorType([rows, width], dtype)
        return relax.call_tir(variable, [*arguments, *others], out_ty=out)


def _finish(fusion: _Fusion, width: int, dtype: str) -> Finish:
    entry = fusion.entry
    output = entry.buffers[-1]
    others = [b for index, b in enumerate(entry.buffers[:-1]) if index != fusion.taken]

    def arguments(rows: Any) -> list[Argument]:
        return [
            Argument(
                f"other_{index}",
                (rows, width)
                if _equal_shapes(buffer, output)
                else tuple(int(length) for length in buffer.shape),
                str(buffer.dtype),
            )
            for index, buffer in enumerate(others)
        ]

    def apply(buffers: Sequence[Any], value: Any, row: Any, column: Any) -> Any:
        def read(old: Any) -> Any:
            if old.source.same_as(entry.buffers[fusion.taken]):
                return value
            index = next(i for i, b in enumerate(others) if old.source.same_as(b))
            if _equal_shapes(others[index], output):
                return load(buffers[index], row, column)
            where = [_at_column(i, entry.axes[-1], column) for i in old.indices]
            return load(buffers[index], *where)

        return tvm_ffi.structural_map(entry.value, (TensorLoad, read), order="post")

    return Finish(arguments, apply, dtype)


def _at_column(index: Any, axis: Any, column: Any) -> Any:
    return tvm_ffi.structural_map(
        index,
        (tirx.Var, lambda variable: column if variable.same_as(axis) else variable),
        order="post",
    )
