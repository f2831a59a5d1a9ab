"""`cases.json`: what each compiled case takes and gives, without a word of how it is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

Sizes = Mapping[str, int]
"""Lengths by symbol: `{"rows": 8}`."""

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


@dataclass(frozen=True)
class Tensor:
    """A name, a shape of numbers and symbols, and a dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def lengths(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape with symbols replaced."""
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.shape)

    def bytes(self, sizes: Sizes) -> int:
        """Of all entries."""
        return prod(self.lengths(sizes)) * BYTES[self.dtype]


@dataclass(frozen=True)
class Weight:
    """A matrix for each block, `[blocks, width, depth]`, and the tensors that hold it.

    Attributes:
        name: of the matrix.
        form: `plain`, as it is; `dense`, values in the order of fragments; `coded`, codes in that
            order with scales.
        tensors: that hold it: one, or codes, scales and their units.
        blocks, width, depth: of the matrix.
        bits: of a stored code.
        offset: that stored codes are above what they mean.
        levels: different codes.
        group: inputs that share a scale.
        planes: with codes and scales of their own, which are added up.
    """

    name: str
    form: Literal["plain", "dense", "coded"]
    tensors: tuple[Tensor, ...]
    blocks: int = 1
    width: int = 1
    depth: int = 1
    bits: int = 0
    offset: int = 0
    levels: int = 0
    group: int = 0
    planes: int = 1

    @property
    def bytes(self) -> int:
        """As stored."""
        return sum(tensor.bytes({}) for tensor in self.tensors)

    @property
    def products(self) -> int:
        """Multiplications for a row of x."""
        return self.blocks * self.width * self.depth if self.form != "plain" else 0


@dataclass(frozen=True)
class Call:
    """A function of the library, the tensors it reads, and those it writes behind them."""

    function: str
    inputs: tuple[str, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A compiled case.

    Attributes:
        name: by which it is selected.
        kind: what it is checked and compared with.
        structure: of a product or a model: the scheme, or `dense`.
        dtype: of activations.
        library: file with its code.
        engine: `functions` of the library, or `vm`, one function of Relax's virtual machine.
        weights: all matrices.
        inputs: of a call.
        calls: in order.
        result: the output that is checked; others are not counted in what must be written.
        sizes: to measure.
        facts: numbers that the reference needs beside the shapes.
        architecture: the one GPU that it has code for, as nvcc names it, where it is not for all
            of the bundle.
    """

    name: str
    kind: Literal["product", "norm", "attention", "decode"]
    structure: str
    dtype: str
    library: str
    engine: Literal["functions", "vm"]
    weights: tuple[Weight, ...]
    inputs: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    result: str
    sizes: tuple[dict[str, int], ...]
    facts: dict[str, Any]
    architecture: str = ""

    def refusal(self, capability: tuple[int, int]) -> str | None:
        """Why a GPU of a compute capability cannot run the case; None if it can."""
        major, minor = capability
        if self.architecture in ("", f"sm_{major}{minor}a"):
            return None
        return f"it is for {self.architecture} alone, and this GPU is an sm_{major}{minor}"

    @property
    def output(self) -> Tensor:
        """The tensor of the result."""
        return next(t for call in self.calls for t in call.outputs if t.name == self.result)


def write_cases(path: Path, cases: Sequence[Case], about: Mapping[str, Any]) -> None:
    """Writes all cases, and what the bundle was made from."""
    document = {"about": dict(about), "cases": [asdict(case) for case in cases]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_cases(path: Path) -> tuple[list[Case], dict[str, Any]]:
    """The inverse of `write_cases`."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return [_case(item) for item in document["cases"]], document["about"]


def _case(item: dict[str, Any]) -> Case:
    weights = tuple(Weight(**w | {"tensors": _tensors(w["tensors"])}) for w in item["weights"])
    calls = tuple(
        Call(c["function"], tuple(c["inputs"]), _tensors(c["outputs"])) for c in item["calls"]
    )
    inputs, sizes = _tensors(item["inputs"]), tuple(item["sizes"])
    read = {"weights": weights, "calls": calls, "inputs": inputs, "sizes": sizes}
    return Case(**item | read)


def _tensors(items: Sequence[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for t in items)
