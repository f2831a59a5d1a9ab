"""From the steps of a kernel to Relax expressions of any rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tvm import relax

from .base import Step


def emit(
    builder: relax.BlockBuilder,
    steps: Sequence[Step],
    x: relax.Expr,
    packed: Mapping[str, relax.Expr],
    *,
    features: int = 1,
    products: dict[str, Step] | None = None,
) -> relax.Expr:
    """The output of the last step for x of any rank, inside a binding block of `builder`.

    The steps see one flat, symbolic number of rows.

    Args:
        builder: of the module that gets the PrimFuncs; equal ones are shared.
        steps: the kernel's.
        x: `[..., in_features]`, or indices `[...]`.
        packed: the stored tensors by suffix.
        features: trailing dimensions of x that are no rows: 0 for indices.
        products: is told the steps that take a finish, by the name of their PrimFunc.
    """
    shape = list(x.ty.shape)
    leading, rest = shape[: len(shape) - features], shape[len(shape) - features :]
    rows = math.prod(leading[1:], start=leading[0]) if leading else 1
    flat = x if len(leading) == 1 else builder.emit(relax.op.reshape(x, [rows, *rest]))
    values = {**packed, "x": flat}
    for step in steps:
        types = [relax.TensorType((rows, item.width), item.dtype) for item in step.outputs]
        function = builder.add_func(step.function, step.name)
        if step.finish is not None and products is not None:
            products[function.name_hint] = step
        arguments = [values[name] for name in step.inputs]
        single = types[0] if len(types) == 1 else types
        result = builder.emit(relax.call_tir(function, arguments, out_ty=single))
        for index, item in enumerate(step.outputs):
            values[item.name] = (
                result if len(types) == 1 else builder.emit(relax.TupleGetItem(result, index))
            )
    (last,) = steps[-1].outputs
    y = values[last.name]
    if len(leading) == 1:
        return y
    return builder.emit(relax.op.reshape(y, [*leading, last.width]))
