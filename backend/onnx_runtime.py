"""Writes the file that stock ONNX Runtime runs fastest, and names what will be slow in it.

The rules were measured on ONNX Runtime 1.31.1 for CPUs with AVX2. Those of its CUDA provider were
read in its sources; nothing was measured there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from ..passes.errors import LoweringError
from ..passes.nodes import StructuredNode, structured_nodes
from ..passes.structures.base import Form
from ..passes.structures.block_quantized import CUDA_OPSET, GROUPS, PORTABLE_OPSET, BlockQuantized
from ..passes.structures.coded_factors import CodedFactors
from ..passes.structures.int_codes import IntCodes
from ..passes.structures.low_rank import LowRank
from ..passes.structures.monarch import Monarch
from ..passes.structures.residual import Residual
from ..passes.structures.trit_planes import TritPlanes

MAX_OPSET = 26
MAX_IR_VERSION = 13
FUNCTION_IR_VERSION = 10
"""The first IR version whose files keep node metadata and 4-bit integers."""

_MONARCH_SHARE = 0.6
"""Of a dense weight's parameters; above it Monarch was at best as fast in any measurement."""

_FIRST_CONVERTED = 18
"""The lowest opset that models can be raised to."""

_CUDA_COLUMNS = 8
"""Rows of W that a block of threads of its kernels for few rows of x multiplies by."""

_LEAST_OPSETS: Mapping[Form, int] = {"cuda": CUDA_OPSET, "portable": PORTABLE_OPSET}
"""The first opset with CastLike, and with blocked DequantizeLinear."""


def prepare(model: ir.Model, form: Form) -> None:
    """Raises or refuses the opset of `model` in place, before structured nodes are put in.

    Raises:
        LoweringError: the opset is above what ONNX Runtime reads, or cannot be raised to what
            the form needs.
    """
    opset = model.opset_imports.get("", MAX_OPSET)
    if opset > MAX_OPSET:
        raise LoweringError(
            f"the model is of opset {opset} and ONNX Runtime reads up to {MAX_OPSET}; "
            f"export it again with opset {MAX_OPSET} or lower"
        )
    least = _LEAST_OPSETS.get(form, 0)
    if opset < least:
        from onnxscript import version_converter

        version_converter.convert_version(model, target_version=max(least, _FIRST_CONVERTED))
        if model.opset_imports[""] < least:
            raise LoweringError(
                f"the {form} form needs opset {least} and the model, of opset {opset}, cannot be "
                "converted; export it again with a later opset"
            )
    model.ir_version = min(max(model.ir_version, FUNCTION_IR_VERSION), MAX_IR_VERSION)


def save(model: ir.Model, folder: Path) -> None:
    """Writes `model.onnx` and, for the weights, `model.onnx.data` into `folder`."""
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")


def slow_forms(model: ir.Model, form: Form, *, own_kernels: bool = False) -> list[str]:
    """One sentence for each kind of structured node that will run slower than dense or could.

    Args:
        model: the rewritten model.
        form: of its functions.
        own_kernels: whether a library takes the place of the functions.
    """
    found: dict[str, list[str]] = {}
    for node in structured_nodes(model):
        for reason in _slow(node, form, own_kernels):
            found.setdefault(reason, []).append(node.site)
    return [f"{reason}: {_some(sites)}" for reason, sites in found.items()]


def _slow(node: StructuredNode, form: Form, own_kernels: bool) -> Iterator[str]:
    if node.gathers:
        return
    if form == "cuda":
        yield from _slow_on_cuda(node)
        return
    if _moves_channels(node.node):
        yield (
            "1×1 convolutions and W @ x become matmuls between Transposes, which take longer than "
            "dense in ONNX Runtime; keep them dense where time matters more than size"
        )
    if own_kernels:
        return
    match node.structure:
        case (IntCodes() | TritPlanes() as codes) | Residual(codes=codes):
            yield from _slow_codes(codes, form)
        case LowRank(factor_bits=8) if form == "fast":
            yield (
                "8-bit factors of low rank are dequantised whole at each call and run slower than "
                "dense in ONNX Runtime; factors of 32 bits and kernels of TVM are the fast forms"
            )
        case Monarch() as monarch:
            dense = node.out_features * node.in_features
            if monarch.macs(node.out_features, node.in_features) > _MONARCH_SHARE * dense:
                yield (
                    f"Monarch with over {_MONARCH_SHARE:.0%} of the parameters is at best as fast "
                    "as dense in ONNX Runtime, which moves the features between its two matmuls; "
                    "choose a lower ratio"
                )


def _slow_on_cuda(node: StructuredNode) -> Iterator[str]:
    for codes, out_features, in_features in _code_products(node):
        partial = in_features % codes.block_in("cuda", in_features)
        if out_features % _CUDA_COLUMNS or partial:
            yield (
                "ONNX Runtime's CUDA provider, by its sources, multiplies codes as they are "
                f"only where {_CUDA_COLUMNS} divides out_features and {GROUPS[0]} in_features, "
                "and else dequantises the weight whole at each call; keep it dense where time "
                "matters more than size"
            )
            return


def _code_products(node: StructuredNode) -> Iterator[tuple[BlockQuantized, int, int]]:
    """The codes that a node multiplies by, with their outputs and inputs."""
    shape = (node.out_features, node.in_features)
    match node.structure:
        case (IntCodes() | TritPlanes() as codes) | Residual(codes=codes):
            yield codes, *shape
        case LowRank(coded=CodedFactors() as coded):
            parts, shapes = coded.parts(node.in_features), coded.shapes(*shape)
            yield from ((part, *shapes[name]) for name, part in parts.items())


def _slow_codes(codes: IntCodes | TritPlanes, form: Form) -> Iterator[str]:
    if form == "portable":
        return
    if codes.activations != "int8":
        for bits in sorted({term.bits for term in codes.terms} & {2, 8}):
            yield (
                f"{bits}-bit codes with float activations are dequantised whole at each call and "
                "run slower than dense in ONNX Runtime; activations=int8 is the fast form"
            )
    elif len(codes.terms) > 1:
        yield (
            f"{len(codes.terms)} sums of codes for one layer take longer than dense in ONNX "
            "Runtime from a few rows on; two tied planes are one, as are int_codes"
        )


def _moves_channels(node: ir.Node) -> bool:
    """Whether x comes from a Transpose that moves its features from the second axis to the last."""
    x = node.inputs[0]
    producer = None if x is None else x.producer()
    if producer is None or producer.op_type != "Transpose" or "perm" not in producer.attributes:
        return False
    perm = list(producer.attributes["perm"].as_ints())
    return len(perm) > 2 and perm == [0, *range(2, len(perm)), 1]


def _some(names: list[str], most: int = 3) -> str:
    names = sorted(set(names))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
