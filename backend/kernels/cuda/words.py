"""What kernels for GPUs say beyond `tir`: grids, warps, shared memory and device functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ..mathematics import dtype_of
from ..tir import Buffer, Expr, index, load, only_if, store

WARP = 32

UNIT = 4
"""Words that a thread loads or copies at once."""


@contextmanager
def grid(
    blocks: tuple[int | Expr, ...], warps: int
) -> Iterator[tuple[tuple[Expr, ...], Expr, Expr]]:
    """A kernel of its own: yields the indices of the block, that of the warp and that of the lane.

    It is not launched where there are no blocks, which CUDA refuses.

    Args:
        blocks: how many there are along each axis, x first.
        warps: of a block.
    """
    frames = [only_if(count > 0) for count in blocks if not isinstance(count, int)]
    frames += [
        T.thread_binding(index(0), index(count), thread=f"blockIdx.{axis}")
        for axis, count in zip("xyz", blocks, strict=False)
    ]
    frames.append(T.thread_binding(index(0), index(warps), thread="threadIdx.y"))
    frames.append(T.thread_binding(index(0), index(WARP), thread="threadIdx.x"))
    with ExitStack() as stack:
        entered = [stack.enter_context(frame) for frame in frames]
        *block, warp, lane = entered[-len(blocks) - 2 :]
        yield tuple(block), warp, lane


def unrolled(extent: int) -> Any:
    """`for i in range(extent)`, which the compiler writes out."""
    return T.unroll(index(0), index(extent))


def registers(size: int, dtype: str = "uint32") -> Buffer:
    """An array of this thread; where all its indices are known it lives in registers."""
    return T.alloc_buffer((size,), dtype, scope="local")


def shared_words(size: int) -> Buffer:
    """The block's one piece of shared memory, of 4-byte words.

    More than one would be laid over each other where TVM thinks that they are not used at once; it
    does not know of asynchronous copies.
    """
    return T.alloc_buffer((size,), "uint32", scope="shared.dyn")


def address(buffer: Buffer, *indices: int | Expr) -> Expr:
    """Where `buffer[indices]` lies."""
    return buffer.ptr_to([index(i) for i in indices])


def call(name: str, *arguments: Any) -> None:
    """A call of a device function; ints are `int` there."""
    given = [tirx.const(a, "int32") if isinstance(a, int) else a for a in arguments]
    T.evaluate(tirx.call_extern("int32", name, *given))


def barrier() -> None:
    """All threads of a block wait for each other, and see what the others have stored."""
    T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))


def shuffled(value: Expr, mask: int) -> Expr:
    """The value of the lane whose index differs in the bits of `mask`."""
    full = tirx.const(0xFFFFFFFF, "uint32")
    arguments = (full, value, tirx.const(mask, "int32"), tirx.const(WARP, "int32"))
    return tirx.call_pure_extern(dtype_of(value), "__shfl_xor_sync", *arguments)


def divided(count: int | Expr, by: int) -> Any:
    """`ceil(count / by)`."""
    if isinstance(count, int):
        return -(-count // by)
    return tirx.floordiv(count + (by - 1), index(by))


def held(value: Expr) -> Expr:
    """`value`, computed once, in a register."""
    kept = registers(1, dtype_of(value))
    store(kept, value, 0)
    return load(kept, 0)


def summed_over(values: Buffer, place: int | Expr, lanes: int) -> None:
    """`values[place]` of every lane becomes the sum over its group of `lanes` lanes."""
    step = lanes // 2
    while step:
        here = load(values, place)
        store(values, here + shuffled(here, step), place)
        step //= 2


def clear(values: Buffer, first: int | Expr, count: int) -> None:
    """Zeros."""
    with unrolled(count) as i:
        store(values, tirx.const(0, dtype_of(values)), first + i)
