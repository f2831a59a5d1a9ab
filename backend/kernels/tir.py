"""Thin words over TVM's IRBuilder; all indices are int64, as Relax shapes are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

Choice = TypeVar("Choice")

Buffer = Any
Expr = Any
PrimFunc = Any


@dataclass(frozen=True)
class Argument:
    """One buffer of a PrimFunc: a name, a shape and a dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def index(value: int | Expr) -> Expr:
    """`value` as an int64 expression."""
    return tirx.const(value, "int64") if isinstance(value, int) else value


def serial(extent: int | Expr) -> Any:
    """`for i in range(extent)`, as a context manager that yields `i`."""
    return T.serial(index(0), index(extent))


def parallel(extent: int | Expr) -> Any:
    """The same over the threads of the pool."""
    return T.parallel(index(0), index(extent))


def vectorized(extent: int) -> Any:
    """The same, all iterations at once."""
    return T.vectorized(index(0), index(extent))


def only_if(condition: Expr) -> Any:
    """`if condition:` in the generated code, as a context manager."""
    stack = ExitStack()
    stack.enter_context(T.If(condition))
    stack.enter_context(T.Then())
    return stack


def by_rows(
    rows: Expr,
    choices: Sequence[tuple[int | None, Choice]],
    emit: Callable[[Choice, int, int | None], None],
) -> None:
    """Emits the code of each choice, of which the first one that serves so many rows runs.

    `emit` is told too how many rows there are at least and at most.
    """
    least = 1
    for most, choice in choices:
        if most is None and least == 1:
            emit(choice, least, most)
            continue
        enough = rows >= least
        with only_if(enough if most is None else tirx.all(enough, rows <= most)):
            emit(choice, least, most)
        least = (most or 0) + 1


def bind(value: Expr) -> Expr:
    """`value`, an int64, computed once.

    In a variable of memory, which LLVM keeps in a register: TVM's simplifier would put the
    expression of a let into every use again, and its time grows exponentially with their depth.
    """
    held = local(1, "int64")
    store(held, value, 0)
    return load(held, 0)


def unknown_zero(rows: Expr) -> Expr:
    """0, computed from a number of rows so that LLVM cannot know it.

    It unrolls loops of a known length until the code of a tile no longer fits the processor's cache
    of decoded instructions, and runs at half the speed.
    """
    return tirx.shift_right(rows, index(63))


def ramp(start: int | Expr, lanes: int) -> Expr:
    """The indices `start … start + lanes - 1`; a plain index where there is one lane."""
    return index(start) if lanes == 1 else tirx.Ramp(index(start), index(1), lanes)


def broadcast(value: Expr, lanes: int) -> Expr:
    """`value` in each lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def zeros(dtype: str, lanes: int) -> Expr:
    """A vector of zeros."""
    return broadcast(tirx.const(0, dtype), lanes)


def convert(value: Expr, dtype: str, lanes: int) -> Expr:
    """`value`, of `lanes` lanes, as `dtype`."""
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def load(buffer: Buffer, *indices: int | Expr) -> Expr:
    """`buffer[indices]`."""
    return buffer[tuple(index(i) for i in indices)]


def store(buffer: Buffer, value: Expr, *indices: int | Expr) -> None:
    """`buffer[indices] = value`."""
    T.buffer_store(buffer, value, [index(i) for i in indices])


def local(size: int, dtype: str) -> Buffer:
    """A small array of this thread; where all indices are constant it lives in registers."""
    return T.alloc_buffer((size,), dtype)


def fold(buffer: Buffer, combine: Callable[[Expr, Expr], Expr], lanes: int = 16) -> None:
    """Combines the first `lanes` entries of a buffer, a power of two, in its first one."""
    width = lanes // 2
    while width:
        one, other = load(buffer, ramp(0, width)), load(buffer, ramp(width, width))
        store(buffer, combine(one, other), ramp(0, width))
        width //= 2


def prim_func(
    inputs: Callable[[Expr], Sequence[Argument]],
    body: Callable[..., None],
) -> PrimFunc:
    """A private, scheduled PrimFunc over a symbolic number of rows.

    `inputs(rows)` names the buffers; `body(rows, *buffers)` emits the statements.
    """
    rows = tirx.Var("rows", "int64")
    return prim_func_of(inputs(rows), lambda *buffers: body(rows, *buffers))


def prim_func_of(arguments: Sequence[Argument], body: Callable[..., None]) -> PrimFunc:
    """The same over the symbols in the shapes of its arguments."""
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        buffers = [T.arg(item.name, T.buffer(item.shape, item.dtype)) for item in arguments]
        with T.sblock("root"):
            # Left out, TVM would work them out from all statements, which takes it a minute.
            T.reads()
            T.writes()
            body(*buffers)
    return builder.get()
