"""What rounding activations to int8 does to the outputs of each layer: `activations=int8`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes.sites import Site
from ..passes.structures.block_quantized import round_activations
from .calibrate import inputs_of, truncated
from .dense import on_disk, open_session
from .sample_check import Sample
from .samples import shortened

_ROWS = 256


def rounding_errors(
    model: ir.Model, sites: Sequence[Site], sample: Sample, blocks: Mapping[str, Iterable[int]]
) -> dict[tuple[str, int], float]:
    """`‖(x̂ − x) Wᵀ‖ / ‖x Wᵀ‖` by site and block size, on the inputs of one sample.

    A site that is only gathered from has no x, and is left out.

    Args:
        model: the captured dense model; it is not changed.
        sites: of it.
        sample: one call of the model, of which a few hundred rows are enough.
        blocks: numbers of columns that are rounded with one scale, for each site by name.
    """
    wanted = [site for site in sites if blocks.get(site.name) and inputs_of(site)]
    names = sorted({name for site in wanted for name, _ in inputs_of(site)})
    if not names:
        return {}
    with on_disk(model) as stored:
        part, outputs = truncated(stored, names)
        found = open_session(part, lean=True)(shortened(sample, model, _ROWS))
    errors = {}
    for site in wanted:
        rows = np.concatenate(
            [
                np.moveaxis(found[outputs[name]], axis, -1).reshape(-1, site.in_features)[:_ROWS]
                for name, axis in inputs_of(site)
            ]
        )
        weight = site.weight()
        exact = _norm(rows @ weight.T)
        for block in blocks[site.name]:
            rounded = round_activations(rows, block) - rows
            errors[site.name, block] = _norm(rounded @ weight.T) / exact if exact else 0.0
    return errors


def _norm(values: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
