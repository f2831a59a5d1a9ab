"""Which forms a planner tries for a site, and how many rows the site's input has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .decide import with_activations
from .fit import FitResult
from .sites import Site, Use
from .structures import candidates
from .structures.base import Activations, Form, Structure
from .structures.block_quantized import BlockQuantized
from .structures.low_rank import LowRank
from .structures.residual import Residual

FITTED: Activations = "float"
"""Activations of the options that are fitted: weights are the same whatever x is rounded to."""


def site_options(site: Site, *, portable: bool = False) -> list[Structure]:
    """Every structure's candidates for the site's shape that can serve all of its uses.

    Args:
        site: the site.
        portable: leave out factors in codes, which stock ONNX Runtime rounds activations for, and
            what it cannot gather rows of.
    """
    found = (
        with_activations(option, FITTED)
        for option in candidates(site.out_features, site.in_features)
        if _serves(option, site, "portable" if portable else "fast")
    )
    return list(dict.fromkeys(found))


def _serves(option: Structure, site: Site, form: Form) -> bool:
    coded = isinstance(option, LowRank) and option.coded is not None
    if form == "portable" and coded:
        return False
    return not site.gathered or option.gathers_in(form)


def variants(
    site: Site, fits: Mapping[str, FitResult], activations: Sequence[Activations]
) -> Iterator[tuple[str, FitResult]]:
    """The fits with each of the activations that are tried, behind the scheme they were fitted as.

    A site that is only gathered from has no activations to round.
    """
    multiplied = any(use.form != "gather" for use in site.uses)
    tried = activations if multiplied else activations[:1]
    for scheme, found in fits.items():
        structure = found.fitted.structure
        if structure.activations is None:
            yield scheme, found
            continue
        for wanted in tried:
            variant = structure.with_activations(wanted)
            fitted = replace(found.fitted, structure=variant)
            yield scheme, replace(found, fitted=fitted)


def rounded_block(structure: Structure) -> int | None:
    """Columns of x that a structure rounds with one scale; None if it does not round."""
    codes = structure.codes if isinstance(structure, Residual) else structure
    if structure.activations != "int8" or not isinstance(codes, BlockQuantized):
        return None
    return codes.block


def rows(use: Use, batch: int, lengths: Mapping[str, int] | None = None) -> int:
    """Rows of a use's input, or numbers of a gather's, in a call of a batch.

    Fixed dimensions beside the features, such as the height and width of an image, count as they
    are, and so do dynamic ones with their length. Where one has no known length all of them
    multiply to `batch`; an input without a known shape counts as `batch`.

    Args:
        use: of a site.
        batch: product of the dynamic dimensions of the model's first input.
        lengths: of dynamic dimensions in such a call, by their names.
    """
    shape = use.x.shape
    if shape is None:
        return batch
    axis = None if use.feature_axis is None else use.feature_axis % len(shape)
    others = [dim for number, dim in enumerate(shape) if number != axis]
    fixed = math.prod(dim for dim in others if isinstance(dim, int))
    names = [dim.value for dim in others if not isinstance(dim, int)]
    known = [lengths[name] for name in names if lengths and name is not None and name in lengths]
    if len(known) == len(names):
        return fixed * math.prod(known)
    return fixed * batch
