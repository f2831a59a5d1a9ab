"""Exact rewrites, which run before sites are found: which there are, and which pay by themselves.

`LOSSLESS` names them in the order they run in. Only the first two are on unless asked for:

- absorbing what comes before a linear makes codes of its weight worse, by 1.1 to 3 times in
  SmolLM2, since the weight of a norm belongs to columns and columns of a group share a scale;
- an RMSNorm takes as long as a LayerNorm in one kernel, and below opset 23 longer in ONNX Runtime,
  which has no such operator there; it is worth having before a rotation;
- one wide product is not always faster than its parts, and its parts lose their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from ..errors import SchemeError
from ..pipeline import Hook, Pipeline
from .absorb_input_scales import AbsorbInputScales
from .absorb_scales import AbsorbScales
from .fuse_siblings import FuseSiblings
from .journal import Journal
from .layer_norm_to_rms_norm import LayerNormToRMSNorm
from .merge_linears import MergeLinears

LOSSLESS: dict[str, Callable[[Journal], ir.passes.InPlacePass]] = {
    "merge_linears": MergeLinears,
    "absorb_scales": AbsorbScales,
    "layer_norm_to_rms_norm": LayerNormToRMSNorm,
    "absorb_input_scales": AbsorbInputScales,
    "fuse_siblings": FuseSiblings,
}

DEFAULT = ("merge_linears", "absorb_scales")


def chosen(names: bool | Sequence[str]) -> tuple[str, ...]:
    """The rewrites that are asked for, in the order they run in.

    Args:
        names: True for those that pay by themselves, False for none, or names.

    Raises:
        SchemeError: a name that is not known.
    """
    wanted = (DEFAULT if names else ()) if isinstance(names, bool) else tuple(names)
    for name in wanted:
        if name not in LOSSLESS:
            raise SchemeError(
                f"exact rewrite {name!r} is not known; known are {', '.join(LOSSLESS)}"
            )
    return tuple(name for name in LOSSLESS if name in wanted)


def apply_lossless(
    model: ir.Model, names: Sequence[str] = DEFAULT, hook: Hook | None = None
) -> Journal:
    """Rewrites `model` in place by the named passes.

    Args:
        model: as captured, its tied weights joined.
        names: of `LOSSLESS`, as `chosen` gives them.
        hook: called around each pass, to print or verify.

    Returns:
        What was done and what was refused.
    """
    journal = Journal()
    Pipeline(tuple((name, LOSSLESS[name](journal)) for name in names)).run(model, hook)
    return journal
