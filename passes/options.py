"""Which forms a planner tries for a site, and how many rows the site's input has."""

from __future__ import annotations

import math

from .decide import with_activations
from .sites import Site, Use
from .structures import candidates
from .structures.base import Activations, Structure


def site_options(site: Site, activations: Activations) -> list[Structure]:
    """Every structure's candidates for the site's shape that can serve all of its uses.

    Args:
        site: the site.
        activations: what `activations=auto` stands for on the target.
    """
    found = (
        with_activations(option, activations)
        for option in candidates(site.out_features, site.in_features)
        if option.gathers or not site.gathered
    )
    return list(dict.fromkeys(found))


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
