"""Finds the dense linears of a model: each weight is a `Site`, or a `Refusal` with its reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .constants import FLOATS, PATH_OPS, constant_tensor, read_tensor, static_values
from .refusals import refuse, refuse_functions
from .uses import Match, UseForm, match_use

SMALLEST_WEIGHT = 1024
"""Weights with fewer elements are left alone: what a structured node adds to the file (names,
scales, attributes, about 1 KiB) and to a run (one more kernel launch, about a microsecond) is of
the order of what replacing 4 KiB of floats can save."""


@dataclass(frozen=True, eq=False)
class Use:
    """One node that multiplies by, or gathers from, the weight of a site.

    Attributes:
        node: the MatMul, Gemm, 1x1 Conv or Gather.
        form: how the node applies the weight; `left_matmul` is `W @ x`.
        feature_axis: the axis of x that holds in_features (may be negative); None for a gather.
        weight_input: which of the first two inputs of the node the weight is.
        dtype: the type the node computes in.
        transposed: whether W is the transpose of what the node reads.
    """

    node: ir.Node
    form: UseForm
    feature_axis: int | None
    weight_input: int
    dtype: ir.DataType
    transposed: bool

    @property
    def x(self) -> ir.Value:
        """The activation, or the indices of a gather, that the node reads now."""
        value = self.node.inputs[1 - self.weight_input]
        if value is None:
            raise ValueError(f"{self.node.name}: its activation is gone")
        return value

    @property
    def weight(self) -> ir.Value:
        """What the node reads of the weight."""
        value = self.node.inputs[self.weight_input]
        if value is None:
            raise ValueError(f"{self.node.name}: its weight is gone")
        return value


@dataclass(frozen=True, eq=False)
class Site:
    """One constant weight and all nodes that use it.

    Attributes:
        name: the parameter's name, unique in the model.
        value: the initializer (or Constant output) that holds the weight.
        path: Transpose, Identity, Cast and Reshape nodes from `value` to the first use, in order.
        in_features, out_features: of the dense form `y = x Wᵀ`, W `[out_features, in_features]`;
            for a gather W's rows are what is gathered.
        uses: at least one.
    """

    name: str
    value: ir.Value
    path: tuple[ir.Node, ...]
    in_features: int
    out_features: int
    uses: tuple[Use, ...]

    @property
    def gathered(self) -> bool:
        """Whether some use gathers rows: only `dense` and structures that gather are allowed."""
        return any(use.form == "gather" for use in self.uses)

    def weight(self) -> NDArray[np.float32]:
        """W as float32 `[out_features, in_features]`, read now (external data is not cached)."""
        tensor = constant_tensor(self.value)
        if tensor is None:
            raise ValueError(f"{self.name}: the weight is no longer a constant of the model")
        seen = read_tensor(tensor, self.path)
        seen = seen.reshape(seen.shape[:2])
        oriented = seen.T if self.uses[0].transposed else seen
        return np.ascontiguousarray(oriented, np.float32)


@dataclass(frozen=True)
class Refusal:
    """A weight that is not a site, and why: shown by `undense inspect`."""

    name: str
    reason: str


def find_sites(model: ir.Model) -> tuple[list[Site], list[Refusal]]:
    """All sites in topological order of their first use, and all refusals.

    One constant is one site as long as all uses agree on W; a weight that enters some nodes as W
    and others as Wᵀ (an untied pair of encoder and decoder) is two sites, `name` and `name.T`.
    A copy of a weight is another constant: `MergeDuplicateWeights` joins them first.
    """
    static = static_values(model.graph)
    matches: dict[ir.Value, list[Match]] = {}
    refused: dict[str, str] = {}
    for node in model.graph:
        found = match_use(node, static)
        if isinstance(found, Match):
            matches.setdefault(found.path.value, []).append(found)
        elif found is not None:
            refused.setdefault(found.name, found.reason)
        for unfit in refuse(model, node, static):
            refused.setdefault(unfit.name, unfit.reason)
    for unfit in refuse_functions(model):
        refused.setdefault(unfit.name, unfit.reason)

    sites: list[Site] = []
    for value, found_uses in matches.items():
        reason = refused.get(str(value.name)) or _obstacle(value, found_uses)
        if reason:
            refused[str(value.name)] = reason
        else:
            sites += _sites(found_uses)
    for name, reason in _others(model.graph, {value.name for value in matches}):
        refused.setdefault(name, reason)
    return _in_order(sites, model.graph), [Refusal(*item) for item in refused.items()]


def _others(graph: ir.Graph, matched: Collection[str | None]) -> Iterator[tuple[str, str]]:
    """Matrices that no linear reads, such as a table of positions that is sliced."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in FLOATS or value.name in matched:
            continue
        nodes = [node for node, _ in value.uses()]
        if any(node.domain for node in nodes):
            continue  # scales of codes and the like: their operator says what they are
        if len(tensor.shape) >= 2 and tensor.size >= SMALLEST_WEIGHT and nodes:
            readers = sorted({node.op_type for node in nodes})
            yield str(value.name), f"read by {' and '.join(readers)}, which is no linear"


def _sites(matches: list[Match]) -> Iterator[Site]:
    """One site for each W that the uses of one constant see."""
    groups: dict[object, list[Match]] = {}
    for match in matches:
        groups.setdefault((_orientation(match), match.path.roundings), []).append(match)
    first_orientation = _orientation(matches[0])
    for group in groups.values():
        first = group[0]
        suffix = "" if _orientation(first) == first_orientation else ".T"
        out_features, in_features = _weight_shape(first)
        yield Site(
            first.path.name + suffix,
            first.path.value,
            first.path.nodes,
            in_features,
            out_features,
            tuple(map(_use, group)),
        )


def _use(match: Match) -> Use:
    return Use(
        match.node,
        match.form,
        match.feature_axis,
        match.weight_input,
        match.path.dtypes[-1],
        match.transposed,
    )


def _orientation(match: Match) -> bool:
    """Whether W is the transpose of the stored constant."""
    return match.transposed != (match.path.permutation[:2] == (1, 0))


def _weight_shape(match: Match) -> tuple[int, int]:
    rows, columns = match.path.shape[:2]
    return (columns, rows) if match.transposed else (rows, columns)


def _obstacle(value: ir.Value, matches: list[Match]) -> str:
    """Why a constant whose uses are all known can still not be a site; empty if it can."""
    out_features, in_features = _weight_shape(matches[0])
    if out_features * in_features < SMALLEST_WEIGHT:
        return f"too small to pay: {out_features}×{in_features}"
    known = {match.node for match in matches}
    other = next((reader for reader in _readers(value) if reader not in known), None)
    if other is None:
        return ""
    reader = "an output of the model" if isinstance(other, ir.Value) else other.op_type
    return f"also read by {reader}, so its dense form would stay beside the structured one"


def _readers(value: ir.Value) -> Iterator[ir.Node | ir.Value]:
    """The nodes that read a constant, also behind Transpose and the like, and model outputs."""
    if value.is_graph_output():
        yield value
    for node, _ in value.uses():
        if not node.domain and node.op_type in PATH_OPS:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _in_order(sites: list[Site], graph: ir.Graph) -> list[Site]:
    """By first use, with a number behind every name that is there already."""
    order = {node: index for index, node in enumerate(graph)}
    unique: dict[str, Site] = {}
    for site in sorted(sites, key=lambda site: order[site.uses[0].node]):
        name = next(name for name in _candidates(site.name) if name not in unique)
        unique[name] = replace(site, name=name)
    return list(unique.values())


def _candidates(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}.{number}" for number in count(2))
