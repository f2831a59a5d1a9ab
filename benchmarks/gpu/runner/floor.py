"""The time that a case takes at least: its bytes over bandwidth, its operations over rate."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from .spec import Case, Sizes

NOMINAL_BANDWIDTH, NOMINAL_RATE = 3.0e12, 7.9e14
"""Bytes and operations a second that floors are printed for where there is no GPU: an H100's."""


@dataclass(frozen=True)
class Work:
    """What cannot be avoided.

    Attributes:
        weight_bytes: of weights as they are stored, each read once.
        bytes: of weights, inputs and the result.
        operations: multiplications and additions of matrix products.
    """

    weight_bytes: int
    bytes: int
    operations: int


@dataclass(frozen=True)
class Floor:
    """The longer of both times, and which one it is."""

    seconds: float
    bound: Literal["bytes", "operations"]


def work_of(case: Case, sizes: Sizes) -> Work:
    """Counted from the shapes; what is between two kernels of a case is not counted."""
    weights = sum(weight.bytes for weight in case.weights)
    moved = sum(tensor.bytes(sizes) for tensor in [*case.inputs, case.output])
    return Work(weights, weights + moved, 2 * _products(case, sizes))


def floor_of(work: Work, bandwidth: float, rate: float) -> Floor:
    """At a bandwidth in bytes and a rate in operations a second."""
    by_bytes, by_operations = work.bytes / bandwidth, work.operations / rate
    if by_bytes >= by_operations:
        return Floor(by_bytes, "bytes")
    return Floor(by_operations, "operations")


def _products(case: Case, sizes: Sizes) -> int:
    if case.kind == "attention":
        return _attention(case, sizes)
    rows = prod(case.output.lengths(sizes)[:-1])
    products = rows * sum(weight.products for weight in case.weights)
    if case.kind == "decode":
        products += case.facts["layers"] * _heads(case, 1, sizes["past"] + 1)
    return products


def _attention(case: Case, sizes: Sizes) -> int:
    queries, keys = sizes["queries"], sizes["keys"]
    if case.facts["causal"]:
        # Query i of q sees k - q + i + 1 of k keys.
        return _heads(case, 1, queries * (2 * keys - queries + 1) // 2)
    return _heads(case, queries, keys)


def _heads(case: Case, queries: int, keys: int) -> int:
    """Of scores and of weighted values."""
    return 2 * queries * keys * int(case.facts["heads"]) * int(case.facts["size"])
