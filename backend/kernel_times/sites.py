"""Sites × schemes → milliseconds of a run, at each batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from ...passes.cache import Cache
from ...passes.options import rows
from ...passes.progress import Progress, silent
from ...passes.sites import Site, Use
from ...passes.structures.base import Form
from ..target import Target
from .footprint import footprint_of
from .layer import DENSE, Layer
from .machine import cache_bytes
from .measure import kernel_times

Milliseconds = dict[int, float]
"""Of the calls of one run, by batch."""


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
) -> dict[str, dict[str, Milliseconds]]:
    """What all uses of each site take, by its name and scheme, its dense form first.

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
    wanted: dict[tuple[int, ...], dict[Layer, None]] = {}
    for site in sites:
        for use in site.uses:
            layers = wanted.setdefault(_rows(use, batches, lengths or {}), {})
            layers.update(dict.fromkeys(_layer(site, use, s, dtype) for s in tried[site.name]))
    read = [  # a weight that several nodes use is held once
        _layer(site, uses[0], DENSE, dtype)
        for site in sites
        if (uses := [use for use in site.uses if use.form != "gather"])
    ]
    footprint = footprint_of(read, cache_bytes(target))
    measured = {
        counts: kernel_times(
            layers, target, form, counts, footprint=footprint, table=table, progress=progress
        )
        for counts, layers in wanted.items()
    }

    def spent(site: Site, scheme: str, number: int) -> float:
        return sum(
            measured[counts][_layer(site, use, scheme, dtype)][counts[number]].median_ms
            for use in site.uses
            for counts in [_rows(use, batches, lengths or {})]
        )

    return {
        site.name: {
            scheme: {batch: spent(site, scheme, number) for number, batch in enumerate(batches)}
            for scheme in tried[site.name]
        }
        for site in sites
    }


def _rows(
    use: Use, batches: Sequence[int], lengths: Mapping[int, Mapping[str, int]]
) -> tuple[int, ...]:
    return tuple(rows(use, batch, lengths.get(batch)) for batch in batches)


def _layer(site: Site, use: Use, scheme: str, dtype: ir.DataType | None) -> Layer:
    name = (dtype or use.dtype).numpy().name
    return Layer(site.out_features, site.in_features, scheme, use.form == "gather", name)
