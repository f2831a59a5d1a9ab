"""What each case is compared with, in torch; one that cannot run says why when it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from .decode import DecodeStep
from .engine import Run
from .random_data import DTYPES
from .reference import Tensors, product, root_mean_square
from .spec import Case, Sizes
from .timing import Subject

LINEAR, COMPILED, INT4 = "torch linear (cuBLAS)", "torch.compile", "torch int4"

_INT4_GROUP, _INT4_INNER_TILES = 128, 8


class Skipped(Exception):
    """A baseline is not run; says why."""


@dataclass(frozen=True)
class Options:
    """What takes long and is asked for.

    Attributes:
        compiled_rows: numbers of rows at which chains of products are given to torch.compile.
        max_autotune: let torch.compile try kernels of its own for dense products.
        copies: how many copies of so many bytes exceed the cache.
    """

    compiled_rows: Sequence[int]
    max_autotune: bool
    copies: Callable[[int], int]


Make = Callable[[], Subject]


def baselines(
    case: Case, sizes: Sizes, sets: Sequence[Tensors], options: Options
) -> dict[str, Make]:
    """Subjects by name, made when they are called for.

    Args:
        case: to compare with.
        sizes: of this comparison.
        sets: weights and inputs of each of our calls.
        options: of the run.
    """
    if case.kind == "product":
        return _products(case, sizes, sets, options)
    if case.kind == "norm":
        return _norms(case, sets)
    if case.kind == "attention":
        return {"torch attention": partial(_attention, case, sets)}
    return {COMPILED: partial(_decode, case, sizes)}


def _products(
    case: Case, sizes: Sizes, sets: Sequence[Tensors], options: Options
) -> dict[str, Make]:
    inputs = [tensors["x"] for tensors in sets]
    shape = int(case.output.shape[-1]), int(case.inputs[0].shape[-1])
    copies = options.copies(shape[0] * shape[1] * 2)
    found: dict[str, Make] = {LINEAR: partial(_linear, case.dtype, shape, copies, inputs)}
    if options.max_autotune:
        found["torch.compile, max-autotune"] = partial(
            _linear, case.dtype, shape, copies, inputs, autotune=True
        )
    if case.structure.startswith(("low_rank", "monarch")):
        found[COMPILED] = partial(_chain, case, sizes, sets, options)
    if case.structure.startswith(("trit_planes", "int_codes")):
        found[INT4] = partial(_int4, shape, options.copies(shape[0] * shape[1] // 2), inputs)
    return found


def _linear(
    dtype: str,
    shape: tuple[int, int],
    copies: int,
    inputs: Sequence[torch.Tensor],
    *,
    autotune: bool = False,
) -> Subject:
    made = partial(torch.randn, shape, dtype=DTYPES[dtype], device=inputs[0].device)
    weights = [made() for _ in range(copies)]
    function: Callable[..., torch.Tensor] = functional.linear
    if autotune:
        function = torch.compile(
            functional.linear, mode="max-autotune-no-cudagraphs", dynamic=False
        )
    return Subject(_turns(function, inputs, weights))


def _chain(case: Case, sizes: Sizes, sets: Sequence[Tensors], options: Options) -> Subject:
    """The same factors in the orders that torch multiplies them in."""
    if sizes["rows"] not in options.compiled_rows:
        rows = ", ".join(map(str, options.compiled_rows))
        raise Skipped(f"torch.compile is asked for at rows {rows} only")
    copies = options.copies(sum(weight.bytes for weight in case.weights))
    device = sets[0]["x"].device
    made = [
        {
            weight.name: torch.randn(
                (weight.blocks, weight.width, weight.depth),
                dtype=DTYPES[case.dtype],
                device=device,
            )
            for weight in case.weights
        }
        for _ in range(copies)
    ]
    compiled = torch.compile(lambda x, factors: product(case.structure, factors, x), dynamic=False)
    return Subject(_turns(compiled, [tensors["x"] for tensors in sets], made))


def _int4(shape: tuple[int, int], copies: int, inputs: Sequence[torch.Tensor]) -> Subject:
    """4-bit weights with scales of groups of 128, in bfloat16."""
    out_features, in_features = shape
    device = inputs[0].device
    weights = []
    for _ in range(copies):
        codes = torch.randint(
            0, 256, (out_features, in_features // 2), dtype=torch.uint8, device=device
        )
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, _INT4_INNER_TILES)
        groups = (in_features // _INT4_GROUP, out_features, 2)
        weights.append((packed, torch.randn(groups, dtype=torch.bfloat16, device=device)))

    def multiplied(x: torch.Tensor, weight: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        packed, scales = weight
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm(x, packed, _INT4_GROUP, scales)
        return result

    return Subject(_turns(multiplied, [x.to(torch.bfloat16) for x in inputs], weights))


def _norms(case: Case, sets: Sequence[Tensors]) -> dict[str, Make]:
    epsilon = float(case.facts["epsilon"])

    def eager(x: torch.Tensor) -> torch.Tensor:
        return root_mean_square(x.float(), epsilon)

    def subject(compiled: bool) -> Subject:
        function = torch.compile(eager, dynamic=False) if compiled else eager
        return Subject([partial(function, tensors["x"]) for tensors in sets])

    return {"torch": partial(subject, False), COMPILED: partial(subject, True)}


def _attention(case: Case, sets: Sequence[Tensors]) -> Subject:
    """Torch's choice among its fused kernels."""
    causal = bool(case.facts["causal"])

    def attended(tensors: Tensors) -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            tensors["query"].transpose(1, 2),
            tensors["key"],
            tensors["value"],
            is_causal=causal,
            enable_gqa=True,
        )

    return Subject([partial(attended, tensors) for tensors in sets])


def _decode(case: Case, sizes: Sizes) -> Subject:
    """The dense model with a cache of fixed length, written in place."""
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.no_grad():
        model = DecodeStep(case.facts, sizes["past"] + 1, DTYPES[case.dtype], device)
    token = torch.zeros((1,), dtype=torch.int64, device=device)
    position = torch.full((1,), sizes["past"], dtype=torch.int64, device=device)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)

    def run() -> torch.Tensor:
        with torch.no_grad():
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            result: torch.Tensor = compiled(token, position)
            return result

    return Subject([run], capture=False)


def _turns(
    function: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    weights: Sequence[object],
) -> list[Run]:
    """One call for each pair, until all inputs and all weights were used."""
    count = max(len(inputs), len(weights))
    return [
        partial(function, inputs[i % len(inputs)], weights[i % len(weights)]) for i in range(count)
    ]
