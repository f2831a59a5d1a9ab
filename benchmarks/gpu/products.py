"""Cases of products: the kernels of a structure with their weights as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from undense.backend.kernels.base import Step
from undense.backend.kernels.cuda.dtypes import Activation, activation
from undense.backend.kernels.cuda.structures import CodesKernel, cuda_kernels, dense_step
from undense.backend.kernels.cuda.weights import Coded, Dense
from undense.passes.scheme import parse_scheme
from undense.passes.structures.block_quantized import BlockQuantized
from undense.passes.structures.int_codes import IntCodes
from undense.passes.structures.low_rank import LowRank
from undense.passes.structures.monarch import Monarch
from undense.passes.structures.trit_planes import TritPlanes

from .runner.spec import Call, Case, Tensor, Weight

ROWS = (1, 4, 8, 16, 32, 64, 128, 512, 2048)
_RANK_STEP = 16
"""Ranks are multiples of it, as a plan's are."""

Functions = dict[str, Any]
"""PrimFuncs by name."""


def product_name(scheme: str, shape: tuple[int, int], dtype: str, architecture: str = "") -> str:
    """Of the case of a product."""
    return f"{architecture} {scheme} {shape[0]}x{shape[1]} {dtype}".lstrip()


def product_case(
    scheme: str,
    shape: tuple[int, int],
    dtype: str,
    rows: Sequence[int] = ROWS,
    architecture: str = "",
) -> tuple[Case, Functions]:
    """A product `[rows, in] -> [rows, out]` for a target that is current.

    Args:
        scheme: of the structure, or `dense`.
        shape: outputs and inputs.
        dtype: of activations and factors.
        rows: to measure.
        architecture: the one GPU that it is compiled for, if it is not for all of the bundle.
    """
    out_features, in_features = shape
    known = _known(dtype)
    if scheme == "dense":
        weights = [dense_weight("weight", ("weight",), known, 1, out_features, in_features)]
        steps: Sequence[Step] = [dense_step(out_features, in_features, dtype)]
    else:
        weights, steps = _structured(scheme, shape, known)
    calls, functions = [], {}
    for number, step in enumerate(steps):
        name = f"step{number}"
        functions[name] = step.function.with_attr("global_symbol", name)
        outputs = tuple(Tensor(o.name, ("rows", o.width), o.dtype) for o in step.outputs)
        calls.append(Call(name, step.inputs, outputs))
    case = Case(
        name=product_name(scheme, shape, dtype, architecture),
        kind="product",
        structure=scheme,
        dtype=dtype,
        library="",
        engine="functions",
        weights=tuple(weights),
        inputs=(Tensor("x", ("rows", in_features), dtype),),
        calls=tuple(calls),
        result="y",
        sizes=tuple({"rows": number} for number in rows),
        facts={},
        architecture=architecture,
    )
    return case, functions


def dense_weight(
    name: str, tensors: Sequence[str], known: Activation, blocks: int, width: int, depth: int
) -> Weight:
    """Values in the order of fragments."""
    stored = Dense(known).arguments(blocks, width, depth)
    named = tuple(Tensor(n, a.shape, a.dtype) for n, a in zip(tensors, stored, strict=True))
    return Weight(name, "dense", named, blocks, width, depth)


def coded_weight(
    name: str, tensors: Sequence[str], known: Activation, structure: BlockQuantized,
    width: int, depth: int,
) -> Weight:  # fmt: skip
    """Codes in the order of fragments."""
    source: Coded = CodesKernel(known).source(structure)
    stored = source.arguments(1, width, depth)
    return Weight(
        name,
        "coded",
        tuple(Tensor(n, a.shape, a.dtype) for n, a in zip(tensors, stored, strict=True)),
        width=width,
        depth=depth,
        bits=source.bits,
        offset=source.offset,
        levels=_levels(structure),
        group=source.group,
        planes=source.count,
    )


def _structured(
    scheme: str, shape: tuple[int, int], known: Activation
) -> tuple[list[Weight], Sequence[Step]]:
    out_features, in_features = shape
    structure: Any = parse_scheme(scheme)
    structure = structure.resolve(*shape, site=scheme)
    stored: dict[str, tuple[int, ...]] = {}
    if isinstance(structure, LowRank):
        assert structure.rank is not None
        rank = int(structure.rank) // _RANK_STEP * _RANK_STEP
        structure = LowRank(rank=rank)
        weights = [
            dense_weight("down", ("down",), known, 1, rank, in_features),
            dense_weight("up", ("up",), known, 1, out_features, rank),
        ]
    elif isinstance(structure, Monarch):
        blocks = structure.blocks
        assert blocks is not None
        assert structure.rank is not None
        wide = blocks * structure.rank
        weights = [
            dense_weight("w1", ("w1",), known, blocks, wide, in_features // blocks),
            dense_weight("w2", ("w2",), known, blocks, out_features // blocks, wide),
        ]
        stored = {weight.name: (blocks,) for weight in weights}
    else:
        tensors = ("codes", "scales", "unit")
        weights = [coded_weight("weight", tensors, known, structure, *shape)]
    kernel = cuda_kernels(known.dtype)[structure.kind]
    return weights, kernel.steps(structure, out_features, in_features, stored)


def _levels(structure: BlockQuantized) -> int:
    """Different codes of a plane."""
    if isinstance(structure, IntCodes):
        return int(2**structure.bits_)
    assert isinstance(structure, TritPlanes)
    return int(3**structure.planes) if structure.tied else 3


def _known(dtype: str) -> Activation:
    known = activation(dtype)
    assert known is not None
    return known
