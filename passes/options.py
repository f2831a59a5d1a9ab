"""Which forms a planner tries for a site, and how many rows the site's input has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .decide import with_activations
from .fit import FitResult
from .sites import Site, Use
from .structures import candidates
from .structures.base import Activations, Structure
from .structures.block_quantized import BlockQuantized
from .structures.low_rank import LowRank
from .structures.residual import Residual

FITTED: Activations = "float"
"""Activations of the options that are fitted: weights are the same whatever x is rounded to."""


def site_options(site: Site, *, portable: bool = False) -> list[Structure]:
    """Every structure's candidates for the site's shape that can serve all of its uses.

    Args:
        site: the site.
        portable: leave out factors in codes, which stock ONNX Runtime rounds activations for.
    """
    found = (
        with_activations(option, FITTED)
        for option in candidates(site.out_features, site.in_features)
        if (option.gathers or not site.gathered) and not (portable and _is_coded(option))
    )
    return list(dict.fromkeys(found))


def _is_coded(option: Structure) -> bool:
    return isinstance(option, LowRank) and option.coded is not None


def variants(
    site: Site, fits: Mapping[str, FitResult], activations: Sequence[Activations]
) -> Iterator[tuple[str, FitResult]]:
    """The fits with each of the activations that are tried, behind the scheme they were fitted as.

    A site that is only gathered from has no activations to round.
    """
    multiplied = any(use.form != "gather" for use in site.uses)
    for scheme, found in fits.items():
        structure = found.fitted.structure
        if structure.activations is None or not multiplied:
            yield scheme, found
            continue
        for wanted in activations:
            variant = structure.with_activations(wanted)
            fitted = replace(found.fitted, structure=variant)
            yield scheme, replace(found, fitted=fitted)


def rounded_block(structure: Structure) -> int | None:
    """Columns of x that a structure rounds with one scale; None if it does not round."""
    codes = structure.codes if isinstance(structure, Residual) else structure
    if structure.activations != "int8" or not isinstance(codes, BlockQuantized):
        return None
    return codes.block


def rows(use: Use, batch: int) -> int:
    """Rows of a use's input, or numbers of a gather's, if its dynamic dimensions multiply to batch.

    Fixed dimensions beside the features, such as the height and width of an image, count as they
    are; an input without a known shape counts as `batch`.
    """
    shape = use.x.shape
    if shape is None:
        return batch
    axis = None if use.feature_axis is None else use.feature_axis % len(shape)
    others = [dim for number, dim in enumerate(shape) if number != axis]
    fixed = math.prod(dim for dim in others if isinstance(dim, int))
    return fixed * (batch if any(not isinstance(dim, int) for dim in others) else 1)
