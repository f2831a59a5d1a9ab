"""What a case computes, by torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .spec import Case, Weight
from .unpack import unpacked

Tensors = Mapping[str, torch.Tensor]

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-11}
"""Of activations; products of float32 are rounded to TF32."""

_TIMES = {"product": 4, "norm": 4, "attention": 8, "decode": 32}
"""Unit roundoffs that the relative error may have: roundings add up from kernel to kernel."""


def tolerance(case: Case) -> float:
    """The relative error, in the norm, that rounding explains."""
    return _TIMES[case.kind] * UNIT_ROUNDOFF[case.dtype]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """`‖actual − expected‖ / ‖expected‖`; infinite where something is no number."""
    difference = (actual.double() - expected).norm() / expected.norm()
    return float(difference) if bool(torch.isfinite(difference)) else float("inf")


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """The result in float64 from the stored tensors and inputs."""
    compute: Callable[[Case, Tensors], torch.Tensor] = {
        "product": _product,
        "norm": _norm,
        "attention": _attention,
        "decode": _decode,
    }[case.kind]
    return compute(case, tensors)


def matrix(weight: Weight, tensors: Tensors) -> torch.Tensor:
    """`[blocks, width, depth]`."""
    return unpacked(weight, [tensors[tensor.name] for tensor in weight.tensors])


def factors(case: Case, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The matrices of a case by name."""
    return {weight.name: matrix(weight, tensors) for weight in case.weights}


def product(structure: str, found: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """`x Ŵᵀ` from the matrices of a structure."""
    if structure.startswith("low_rank"):
        return x @ found["down"][0].T @ found["up"][0].T
    if structure.startswith("monarch"):
        w1, w2 = found["w1"], found["w2"]
        in_blocks, out_blocks = len(w1), len(w2)
        hidden = torch.einsum("rns,rks->nrk", x.reshape(len(x), in_blocks, -1).swapaxes(0, 1), w1)
        middle = hidden.reshape(len(x), in_blocks, out_blocks, -1).swapaxes(1, 2)
        joined = middle.reshape(len(x), out_blocks, -1)
        return torch.einsum("nkm,kpm->nkp", joined, w2).reshape(len(x), -1)
    return x @ found["weight"][0].T


def _product(case: Case, tensors: Tensors) -> torch.Tensor:
    return product(case.structure, factors(case, tensors), tensors["x"].double())


def _norm(case: Case, tensors: Tensors) -> torch.Tensor:
    return root_mean_square(tensors["x"].double(), case.facts["epsilon"])


def root_mean_square(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`x / √(mean square + ε)` of each row."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def _attention(case: Case, tensors: Tensors) -> torch.Tensor:
    """`[batch, queries, heads, size]`, one head of keys at a time."""
    query, key, value = (tensors[name].double() for name in ("query", "key", "value"))
    group = query.shape[2] // key.shape[1]
    results = []
    for head in range(key.shape[1]):
        queries = query[:, :, head * group : (head + 1) * group].transpose(1, 2)
        keys, values = key[:, head : head + 1], value[:, head : head + 1]
        scores = queries @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
        if case.facts["causal"]:
            seen = torch.ones_like(scores[0, 0], dtype=torch.bool)
            seen = seen.tril(scores.shape[-1] - scores.shape[-2])
            scores = scores.masked_fill(~seen, float("-inf"))
        results.append(torch.softmax(scores, -1) @ values)
    return torch.cat(results, 1).transpose(1, 2)


def _decode(case: Case, tensors: Tensors) -> torch.Tensor:
    """One token through all layers, a matrix in float64 at a time."""
    facts, weights = case.facts, {weight.name: weight for weight in case.weights}
    cosine, sine = (tensors[name].double().flatten() for name in ("cosine", "sine"))

    def multiplied(name: str, x: torch.Tensor) -> torch.Tensor:
        return matrix(weights[name], tensors).squeeze(0) @ x

    def normalised(name: str, x: torch.Tensor) -> torch.Tensor:
        return root_mean_square(x, facts["epsilon"]) * matrix(weights[name], tensors)

    x = matrix(weights["embedding"], tensors).squeeze(0)[int(tensors["token"])]
    for layer in range(facts["layers"]):
        prefix = f"layer{layer}"
        h = normalised(f"{prefix}.attention_norm", x)
        query, key, value = (
            multiplied(f"{prefix}.{name}", h).reshape(-1, facts["size"])
            for name in ("query", "key", "value")
        )
        query, key = rotated(query, cosine, sine), rotated(key, cosine, sine)
        keys = torch.cat([tensors[f"past_key{layer}"][0].double(), key[:, None]], 1)
        values = torch.cat([tensors[f"past_value{layer}"][0].double(), value[:, None]], 1)
        group = len(query) // len(key)
        grouped = query.reshape(len(key), group, -1)
        scores = torch.softmax(grouped @ keys.transpose(1, 2) * facts["size"] ** -0.5, -1)
        x = x + multiplied(f"{prefix}.output", (scores @ values).flatten())
        h = normalised(f"{prefix}.feed_forward_norm", x)
        gate = torch.nn.functional.silu(multiplied(f"{prefix}.gate", h))
        x = x + multiplied(f"{prefix}.down", gate * multiplied(f"{prefix}.up", h))
    return multiplied("embedding", normalised("norm", x)).reshape(1, 1, -1)


def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """`[..., size]`, its halves turned by an angle each."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
