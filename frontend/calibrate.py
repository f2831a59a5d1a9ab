"""`C = E[xᵀx]`, `μ = E[x]` of what enters each linear, streamed through the dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..passes.cache import Cache
from ..passes.errors import CalibrationError
from ..passes.progress import Progress, silent
from ..passes.sites import Site
from ..passes.stats import Stats, StatsAccumulator
from .bounds import dim_size
from .dense import on_disk, open_session, ort_message
from .sample_check import Sample
from .samples import Samples
from .stats_cache import Entry, StatsCache

_ROWS = 512
"""Rows that are gathered before they are multiplied: short samples would waste the product."""


@dataclass
class _Group:
    """Sites whose statistics are held at the same time."""

    sites: list[Site] = field(default_factory=list)
    entries: dict[Entry, int] = field(default_factory=dict)
    """in_features of each."""
    bytes: int = 0


def calibrate(
    model: ir.Model,
    sites: Sequence[Site],
    samples: Samples,
    *,
    memory_limit_bytes: int | None = None,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[list[Site], dict[str, Stats]]]:
    """Yields the sites group by group, with the statistic of what enters each, by its name.

    Sites with the same input share one statistic, which is measured once; a site with several
    inputs gets that of all their rows together; one that is only gathered from has none. The
    model runs once for each group, up to the last input that the group needs, so drop a group's
    statistics before asking for the next. Every row counts alike: leave padding out of the samples.

    Args:
        model: the dense model, as captured; it is not changed.
        sites: of `find_sites`, all or some.
        samples: as `read_samples` gives them.
        memory_limit_bytes: for the statistics of one group and the activations of one sample; a
            single site may exceed it. A third of the weights' bytes and 192 MiB at least if None.
        cache: where statistics of the same model, samples and values are looked up and kept.
        progress: told of samples done, over all groups but those that the cache has.

    Raises:
        CalibrationError: no samples; one that the model cannot run; an activation that is not
            finite. It names the sample, and the value and site.
    """
    if len(samples) == 0:
        raise CalibrationError("calibration needs at least one sample; there is none")
    limit = memory_limit_bytes
    if limit is None:
        limit = max(192 * 2**20, _weight_bytes(model) // 3)
    groups = _grouped(model, sites, samples, limit)
    known = None if cache is None else StatsCache(cache, model, samples)
    total = sum(1 for group in groups if group.entries) * len(samples)
    done = 0

    def tell(samples_done: int) -> None:
        progress(done + samples_done, total, "calibrate")

    with ExitStack() as stack:
        stored: ir.Model | None = None
        for group in groups:
            found = known and group.entries and known.get(group.entries)
            if found:
                total -= len(samples)
            elif group.entries:
                stored = stored or stack.enter_context(on_disk(model))
                found = _measure(stored, group, samples, tell)
                done += len(samples)
                if known is not None:
                    known.put(group.entries, found)
            yield group.sites, _by_site(group, found or {})


def _measure(
    stored: ir.Model, group: _Group, samples: Samples, tell: Callable[[int], None]
) -> dict[Entry, Stats]:
    accumulators = _Accumulators(group)
    for index, activations in _activations(stored, group, samples):
        accumulators.update(index, activations)
        tell(index + 1)
    return accumulators.results()


def inputs_of(site: Site) -> dict[Entry, int]:
    """What the uses of a site multiply by, each input once."""
    found: dict[Entry, int] = {}
    for use in site.uses:
        if use.feature_axis is None:
            continue
        axis = use.feature_axis
        if axis >= 0:
            if use.x.shape is None:
                raise CalibrationError(
                    f"{site.name}: the rank of its input {use.x.name!r} is not known, so its "
                    "features cannot be told; export the model with shapes, or keep the site dense"
                )
            axis -= len(use.x.shape)
        found[str(use.x.name), axis] = site.in_features
    return found


def _grouped(model: ir.Model, sites: Sequence[Site], samples: Samples, limit: int) -> list[_Group]:
    """Sites whose inputs are neighbours in the graph together, as many as the limit allows.

    In the order of the last input that each needs: a weight that is used again far behind, as an
    embedding that is also the head, would else make the first group run the whole model.
    """
    order = {output: index for index, node in enumerate(model.graph) for output in node.outputs}
    last = [
        max((order.get(use.x, -1) for use in site.uses if use.feature_axis is not None), default=-1)
        for site in sites
    ]
    sites = [sites[index] for index in sorted(range(len(sites)), key=last.__getitem__)]
    values = {str(use.x.name): use.x for site in sites for use in site.uses}
    sizes = [_symbol_sizes(model, sample) for sample in samples]
    groups = [_Group()]
    for site in sites:
        entries = inputs_of(site)
        group = groups[-1]
        cost = sum(
            _bytes(values[entry[0]], features, sizes)
            for entry, features in entries.items()
            if entry not in group.entries
        )
        if cost and group.entries and group.bytes + cost > limit:
            group = _Group()
            groups.append(group)
            cost = sum(_bytes(values[name], n, sizes) for (name, _), n in entries.items())
        group.sites.append(site)
        group.entries.update(entries)
        group.bytes += cost
    return groups


def _bytes(value: ir.Value, features: int, sizes: Sequence[dict[str, int]]) -> int:
    """The sum of a statistic, and the most rows that wait: some, and those of one more sample."""
    rows = max((_elements(value, size) or 0) // features for size in sizes)
    waiting = rows if rows >= _ROWS else rows + _ROWS
    return 8 * features * features + 4 * features * waiting


def _elements(value: ir.Value, sizes: dict[str, int]) -> int | None:
    if value.shape is None:
        return None
    elements = 1
    for dim in value.shape:
        size = dim_size(dim, sizes)
        if size is None:
            return None
        elements *= size
    return elements


def _symbol_sizes(model: ir.Model, sample: Sample) -> dict[str, int]:
    return {
        dim.value: size
        for value in model.graph.inputs
        for dim, size in zip(value.shape or (), sample[str(value.name)].shape, strict=False)
        if not isinstance(dim, int) and dim.value is not None
    }


def _weight_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _activations(
    stored: ir.Model, group: _Group, samples: Samples
) -> Iterator[tuple[int, dict[str, NDArray[np.floating]]]]:
    """For each sample, the values that the group measures."""
    names = sorted({name for name, _ in group.entries})
    part, outputs = truncated(stored, names)
    run = open_session(part, lean=True)
    for index, sample in enumerate(samples):
        try:
            found = run(sample)
        except Exception as error:
            raise CalibrationError(
                f"calibration sample {index} cannot be run: {ort_message(error)}"
            ) from error
        yield index, {name: found[output] for name, output in outputs.items()}


def truncated(stored: ir.Model, names: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """The part of the model that leads to these values, and the output that gives each.

    What is not float32 is cast to it, since numpy has no bfloat16; an input of the graph may not
    be an output too, and is cast to get a name of its own.
    """
    part = stored.clone()
    graph = part.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    graph.outputs.clear()
    outputs = {}
    for name in names:
        value = values[name]
        if value.dtype != ir.DataType.FLOAT or value.is_graph_input():
            attributes = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
            node = ir.Node("", "Cast", [value], attributes, name=f"undense.measured.{name}")
            graph.append(node)
            value = node.outputs[0]
            value.name, value.dtype = node.name, ir.DataType.FLOAT
            value.shape = values[name].shape
        graph.outputs.append(value)
        outputs[name] = str(value.name)
    RemoveUnusedNodesPass()(part)
    return part, outputs


class _Accumulators:
    """One statistic for each entry of a group."""

    def __init__(self, group: _Group) -> None:
        self._group = group
        self._sums = {entry: StatsAccumulator(n) for entry, n in group.entries.items()}
        self._waiting: dict[Entry, list[NDArray[np.float32]]] = {e: [] for e in group.entries}

    def update(self, sample: int, activations: dict[str, NDArray[np.floating]]) -> None:
        """Adds the rows of one sample."""
        for entry, features in self._group.entries.items():
            name, axis = entry
            rows = np.moveaxis(activations[name], axis, -1).reshape(-1, features)
            if not np.isfinite(rows).all():
                raise self._not_finite(entry, f"in calibration sample {sample}")
            waiting = self._waiting[entry]
            waiting.append(rows)
            if sum(map(len, waiting)) >= _ROWS:
                self._multiply(entry)

    def _multiply(self, entry: Entry) -> None:
        waiting = self._waiting[entry]
        if waiting:
            with np.errstate(over="ignore", invalid="ignore"):  # `results` looks at what came out
                self._sums[entry].update(np.concatenate(waiting))
            waiting.clear()

    def results(self) -> dict[Entry, Stats]:
        """The statistics; each accumulator is given up as it is read."""
        found = {}
        for entry in self._group.entries:
            self._multiply(entry)
            try:
                stats = self._sums.pop(entry).result()
            except ValueError as error:
                sites = self._sites(entry)
                raise CalibrationError(
                    f"{sites[0]}: no sample brings a row to its input {entry[0]!r}; give longer "
                    "samples, or keep the site dense"
                ) from error
            if not np.isfinite(stats.second_moment).all():
                raise self._not_finite(entry, "once squared")
            found[entry] = stats
        return found

    def _sites(self, entry: Entry) -> list[str]:
        return [site.name for site in self._group.sites if entry in inputs_of(site)]

    def _not_finite(self, entry: Entry, when: str) -> CalibrationError:
        return CalibrationError(
            f"{self._sites(entry)[0]}: its input {entry[0]!r} is not finite {when}; mend the model "
            "or the data, or keep the site dense"
        )


def _by_site(group: _Group, found: dict[Entry, Stats]) -> dict[str, Stats]:
    merged: dict[str, Stats] = {}
    for site in group.sites:
        for entry in inputs_of(site):
            known = merged.get(site.name)
            merged[site.name] = found[entry] if known is None else known.merged(found[entry])
    return merged
