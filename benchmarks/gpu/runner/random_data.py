"""Random weights and inputs, made on the device from the shapes in `cases.json`."""

from __future__ import annotations

import math

import torch

from .spec import Sizes, Tensor, Weight

DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32")
}


def random_weight(weight: Weight, generator: torch.Generator) -> list[torch.Tensor]:
    """Its tensors: weights of about `depth ** -0.5`, so that outputs are about as large as x."""
    if weight.form == "plain":
        (tensor,) = weight.tensors
        return [1 + 0.1 * _normal(tensor, {}, generator)]
    if weight.form == "dense":
        (tensor,) = weight.tensors
        return [_normal(tensor, {}, generator) * weight.depth**-0.5]
    codes, scales, unit = weight.tensors
    spread = math.sqrt(weight.planes * (weight.levels**2 - 1) / 12)
    largest = 2.0 ** math.ceil(math.log2(weight.depth**-0.5 / spread))
    device = generator.device
    relative = torch.rand(scales.lengths({}), generator=generator, device=device)
    return [
        _words(codes, weight, generator),
        0.5 + 0.5 * relative,
        # Different ones, so that an output that is given another's is seen.
        largest * 2.0 ** torch.randint(-1, 2, unit.lengths({}), generator=generator, device=device),
    ]


def random_input(tensor: Tensor, sizes: Sizes, generator: torch.Generator) -> torch.Tensor:
    """Normal floats and small indices."""
    shape = tensor.lengths(sizes)
    if tensor.dtype.startswith("int"):
        return torch.randint(
            0, 1000, shape, generator=generator, device=generator.device, dtype=DTYPES[tensor.dtype]
        )
    return _normal(tensor, sizes, generator)


def _normal(tensor: Tensor, sizes: Sizes, generator: torch.Generator) -> torch.Tensor:
    shape = tensor.lengths(sizes)
    made = torch.randn(shape, generator=generator, device=generator.device)
    return made.to(DTYPES[tensor.dtype])


def _words(codes: Tensor, weight: Weight, generator: torch.Generator) -> torch.Tensor:
    """int32 words whose fields are valid codes."""

    def words() -> torch.Tensor:
        return torch.randint(
            -(2**31),
            2**31,
            codes.lengths({}),
            generator=generator,
            device=generator.device,
            dtype=torch.int32,
        )

    if weight.levels == 2**weight.bits:
        return words()
    # Fields of fewer levels are sums of two fields of powers of two that do not overflow.
    first = 2 ** (weight.levels.bit_length() - 1)
    rest = weight.levels - first + 1
    if rest & (rest - 1) or weight.bits not in (2, 4):
        raise ValueError(f"{weight.name}: {weight.levels} levels cannot be made of random words")
    return (words() & _mask(first, weight.bits)) + (words() & _mask(rest, weight.bits))


def _mask(levels: int, bits: int) -> int:
    """Fields of `levels - 1`, a number with only lower bits set, as an int32."""
    word = sum((levels - 1) << shift for shift in range(0, 32, bits))
    return word - 2**32 if word >= 2**31 else word
