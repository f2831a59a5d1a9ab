"""Sites × schemes → milliseconds of a run, at each batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...passes.cache import Cache
from ...passes.options import FITTED, rows
from ...passes.progress import Progress, silent
from ...passes.scheme import parse_scheme
from ...passes.sites import Site, Use
from ...passes.structures.base import Form, Structure
from ..target import Target
from .footprint import footprint_of
from .layer import DENSE, Layer
from .machine import cache_bytes
from .measure import kernel_times
from .reference import Reference

Milliseconds = dict[int, float]
"""Of the calls of one run, by batch."""


@dataclass(frozen=True)
class SiteTimes:
    """What all uses of the sites of a model take.

    Attributes:
        milliseconds: by site and scheme, the dense one first.
        references: by batch, the dense product that takes most of a run. None for a model that
            only looks up rows, or whose weights come from memory: its runs take long enough to be
            timed alone, and a layer beside them does not find the memory as it was alone.
    """

    milliseconds: Mapping[str, Mapping[str, Milliseconds]]
    references: Mapping[int, Reference]

    def dense(self, batch: int) -> float:
        """Milliseconds of all sites as they are."""
        return sum(found[DENSE][batch] for found in self.milliseconds.values())


def site_times(
    sites: Sequence[Site],
    schemes: Mapping[str, Iterable[str]],
    target: Target,
    form: Form,
    batches: Sequence[int],
    *,
    dtype: ir.DataType | None = None,
    lengths: Mapping[int, Mapping[str, int]] | None = None,
    table: Cache | None = None,
    progress: Progress = silent,
) -> SiteTimes:
    """Times the kernels of each site, in its dense form and by its schemes.

    Args:
        sites: of the captured model.
        schemes: resolved, by the name of the site; dense is added.
        target: engine and machine.
        form: of structured nodes, for ONNX Runtime.
        batches: products of the dynamic dimensions of a call.
        dtype: of the activations, if it is another than that of the captured model.
        lengths: of dynamic dimensions by their names, at each batch.
        table: keeps the times from one process to the next; None keeps none.
        progress: is told of layers that were compiled, and then timed.

    Raises:
        UndenseError: as `kernel_times`.
    """
    tried = {site.name: list(dict.fromkeys([DENSE, *schemes[site.name]])) for site in sites}
    wanted: dict[Layer, set[int]] = {}
    for site in sites:
        for use in site.uses:
            for scheme in tried[site.name]:
                counts = wanted.setdefault(_layer(site, use, scheme, dtype, target), set())
                counts.update(_rows(use, batches, lengths or {}))
    read = [  # a weight that several nodes use is held once
        _layer(site, uses[0], DENSE, dtype, target)
        for site in sites
        if (uses := [use for use in site.uses if use.form != "gather"])
    ]
    footprint = footprint_of(read, cache_bytes(target))
    measured = kernel_times(
        wanted, target, form, footprint=footprint, table=table, progress=progress
    )

    def spent(site: Site, scheme: str, number: int) -> float:
        return sum(
            measured[_layer(site, use, scheme, dtype, target)][count].median_ms
            for use in site.uses
            for count in [_rows(use, batches, lengths or {})[number]]
        )

    milliseconds = {
        site.name: {
            scheme: {batch: spent(site, scheme, number) for number, batch in enumerate(batches)}
            for scheme in tried[site.name]
        }
        for site in sites
    }
    products = [
        (_layer(site, use, DENSE, dtype, target), _rows(use, batches, lengths or {}))
        for site in sites
        for use in site.uses
        if use.form != "gather"
    ]

    if not products or footprint is None:
        return SiteTimes(milliseconds, {})

    def reference(number: int, known: int = footprint) -> Reference:
        shares: dict[tuple[Layer, int], float] = {}
        times = {}
        for layer, counts in products:
            place = layer, counts[number]
            times[place] = measured[layer][counts[number]]
            shares[place] = shares.get(place, 0.0) + times[place].median_ms
        largest = max(shares, key=shares.__getitem__)
        return Reference(*largest, known, times[largest])

    references = {batch: reference(number) for number, batch in enumerate(batches)}
    return SiteTimes(milliseconds, references)


def _rows(
    use: Use, batches: Sequence[int], lengths: Mapping[int, Mapping[str, int]]
) -> tuple[int, ...]:
    return tuple(rows(use, batch, lengths.get(batch)) for batch in batches)


def _layer(site: Site, use: Use, scheme: str, dtype: ir.DataType | None, target: Target) -> Layer:
    """What is timed for a use.

    TVM has channels last wherever convolutions are: there they are products. A gather has no
    activations to round: as two layers it would have two times, of noise.
    """
    name = (dtype or use.dtype).numpy().name
    gathers, convolves = use.form == "gather", use.form == "conv" and target.engine == "ort"
    structure = parse_scheme(scheme)
    if gathers and isinstance(structure, Structure):
        scheme = str(structure.with_activations(FITTED))
    return Layer(site.out_features, site.in_features, scheme, gathers, name, convolves)
