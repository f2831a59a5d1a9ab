"""`C = E[xᵀx]`, `μ = E[x]` of what enters each linear, streamed through the dense model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NoReturn

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
from .stats_cache import Entry, Found, StatsCache

_ROWS = 512
"""Rows that are gathered before they are multiplied: short samples would waste the product."""


Refuse = Callable[[Site, str], object]
"""Told of a site that cannot be fitted, why, and the remedy; raises, or has it stay dense."""


@dataclass
class _Group:
    """Sites whose statistics are held at the same time."""

    sites: list[Site] = field(default_factory=list)
    entries: dict[Entry, int] = field(default_factory=dict)
    """in_features of each."""
    bytes: int = 0


def refused(site: Site, cause: str) -> NoReturn:
    """Refuses a site that has no statistic a fit can be made under."""
    raise CalibrationError(f"{site.name}: {cause}, or keep the site dense")


def calibrate(
    model: ir.Model,
    sites: Sequence[Site],
    samples: Samples,
    *,
    wanted: Collection[str] | None = None,
    refuse: Refuse = refused,
    memory_limit_bytes: int | None = None,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[list[Site], dict[str, Stats]]]:
    """Yields the sites group by group, with the statistic of what enters each, by its name.

    Sites with the same input share one statistic, which is measured once; a site with several
    inputs gets that of all their rows together; one that is only gathered from has none. The
    model runs once for each group, up to the last input that the group needs, so drop a group's
    statistics before asking for the next. Every row counts alike: leave padding out of the samples.

    What is measured together follows from `sites` alone, and so do the bytes of the statistics,
    since ONNX Runtime rounds otherwise where another value is asked for.

    Args:
        model: the dense model, as captured; it is not changed.
        sites: of `find_sites`, all of them wherever the same bytes are to come out again.
        samples: as `read_samples` gives them.
        wanted: names of those that are yielded, all if None. Groups without any are left out, and
            whatever is wrong with the statistics of other sites is no error.
        refuse: told of wanted sites without a statistic: the rank of an input is not known, no
            sample brings a row to it, or it is not finite. They are not yielded if it returns.
        memory_limit_bytes: for the statistics of one group and the activations of one sample; a
            single site may exceed it. A third of the weights' bytes and 192 MiB at least if None.
        cache: where statistics of the same model, samples and values are looked up and kept.
        progress: told of samples done, over all groups but those that the cache has.

    Raises:
        CalibrationError: no samples; one that the model cannot run; or as `refuse` raises, which
            names the site, the value and the sample.
    """
    if len(samples) == 0:
        raise CalibrationError("calibration needs at least one sample; there is none")
    limit = memory_limit_bytes
    if limit is None:
        limit = max(192 * 2**20, _weight_bytes(model) // 3)
    left = [site for site in sites if wanted is None or site.name in wanted]
    for site in left:
        if _unknown_rank(site):
            refuse(site, _unknown_rank(site))
    names = {site.name for site in left if not _unknown_rank(site)}
    groups = _grouped(model, sites, samples, limit)
    parts = [[site for site in group.sites if site.name in names] for group in groups]
    measured = [any(map(inputs_of, part)) for part in parts]
    known = None if cache is None else StatsCache(cache, model, samples)
    total = sum(measured) * len(samples)
    done = 0

    def tell(samples_done: int) -> None:
        progress(done + samples_done, total, "calibrate")

    with ExitStack() as stack:
        stored: ir.Model | None = None
        for group, part, is_measured in zip(groups, parts, measured, strict=True):
            if not part:
                continue
            check = _Check(part, refuse)
            found: dict[Entry, Found] = {}
            if is_measured:
                stats = known and known.get(group.entries)
                if stats:
                    found = stats
                    total -= len(samples)
                else:
                    stored = stored or stack.enter_context(on_disk(model))
                    found = _measure(stored, group, samples, check, tell)
                    done += len(samples)
                    if known is not None:
                        known.put(group.entries, found)
            yield check.usable(found), _by_site(part, found)


def _measure(
    stored: ir.Model,
    group: _Group,
    samples: Samples,
    check: _Check,
    tell: Callable[[int], None],
) -> dict[Entry, Found]:
    accumulators = _Accumulators(group, check)
    for index, activations in _activations(stored, group, samples):
        accumulators.update(index, activations)
        tell(index + 1)
    return accumulators.results()


def inputs_of(site: Site) -> dict[Entry, int]:
    """What the uses of a site multiply by, each input once.

    Raises:
        CalibrationError: the rank of an input is not known.
    """
    if _unknown_rank(site):
        refused(site, _unknown_rank(site))
    found: dict[Entry, int] = {}
    for use in site.uses:
        if use.feature_axis is None:
            continue
        axis = use.feature_axis
        if axis >= 0 and use.x.shape is not None:
            axis -= len(use.x.shape)
        found[str(use.x.name), axis] = site.in_features
    return found


def _unknown_rank(site: Site) -> str:
    """Why the features of an input cannot be told, and the remedy; nothing if they can be."""
    for use in site.uses:
        if use.feature_axis is not None and use.feature_axis >= 0 and use.x.shape is None:
            return (
                f"the rank of its input {use.x.name!r} is not known, so its features cannot be "
                "told; export the model with shapes"
            )
    return ""


class _Check:
    """Refuses the sites of a part whose statistic cannot be used, each once."""

    def __init__(self, part: Sequence[Site], refuse: Refuse) -> None:
        self._part, self._refuse = part, refuse
        self._refused: set[str] = set()

    def fault(self, entry: Entry, cause: str) -> None:
        """Told as soon as it is known, so that nothing long is done in vain if it raises."""
        for site in self._part:
            if site.name not in self._refused and entry in inputs_of(site):
                self._refused.add(site.name)
                self._refuse(site, cause)

    def usable(self, found: Mapping[Entry, Found]) -> list[Site]:
        """The sites that are left, when all has been found."""
        for entry, stats in found.items():
            if isinstance(stats, str):
                self.fault(entry, stats)
        return [site for site in self._part if site.name not in self._refused]


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
        entries = {} if _unknown_rank(site) else inputs_of(site)
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
    """One statistic for each entry of a group, as long as there is no fault in it."""

    def __init__(self, group: _Group, check: _Check) -> None:
        self._group, self._check = group, check
        self._faults: dict[Entry, str] = {}
        self._sums = {entry: StatsAccumulator(n) for entry, n in group.entries.items()}
        self._waiting: dict[Entry, list[NDArray[np.float32]]] = {e: [] for e in group.entries}

    def update(self, sample: int, activations: dict[str, NDArray[np.floating]]) -> None:
        """Adds the rows of one sample."""
        for entry, features in self._group.entries.items():
            if entry in self._faults:
                continue
            name, axis = entry
            rows = np.moveaxis(activations[name], axis, -1).reshape(-1, features)
            if not np.isfinite(rows).all():
                self._not_finite(entry, f"in calibration sample {sample}")
                continue
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

    def results(self) -> dict[Entry, Found]:
        """The statistics, or what is wrong; each accumulator is given up as it is read."""
        return {entry: self._result(entry) for entry in self._group.entries}

    def _result(self, entry: Entry) -> Found:
        if entry in self._faults:
            return self._faults[entry]
        self._multiply(entry)
        try:
            stats = self._sums.pop(entry).result()
        except ValueError:
            why = f"no sample brings a row to its input {entry[0]!r}; give longer samples"
            return self._fault(entry, why)
        if not np.isfinite(stats.second_moment).all():
            return self._not_finite(entry, "once squared")
        return stats

    def _not_finite(self, entry: Entry, when: str) -> str:
        why = f"its input {entry[0]!r} is not finite {when}; mend the model or the data"
        return self._fault(entry, why)

    def _fault(self, entry: Entry, cause: str) -> str:
        self._faults[entry] = cause
        self._sums.pop(entry, None)
        self._waiting[entry].clear()
        self._check.fault(entry, cause)
        return cause


def _by_site(sites: Sequence[Site], found: Mapping[Entry, Found]) -> dict[str, Stats]:
    merged: dict[str, Stats] = {}
    for site in sites:
        stats = [found[entry] for entry in inputs_of(site)]
        usable = [entry for entry in stats if isinstance(entry, Stats)]
        if usable and len(usable) == len(stats):
            merged[site.name] = functools.reduce(Stats.merged, usable)
    return merged
