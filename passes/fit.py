"""Site × structure → factors: the fit, its error, and the tensors that are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .bias_correction import has_bias, mean_error
from .errors import FitError
from .linalg import relative_error
from .replace import Fitted
from .sites import Site
from .stats import Stats
from .structures.base import Factors, Form, Structure

_HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted site.

    Attributes:
        fitted: what `ReplaceDense` puts into the graph.
        relative_error: `sqrt(tr(E C Eᵀ) / tr(W C Wᵀ))` with statistics, `‖E‖ / ‖W‖` without,
            where `E = W − Ŵ`; with Σ in the numerator where a bias takes up the mean error.
    """

    fitted: Fitted
    relative_error: float


def fit_site(
    site: Site, structure: Structure, stats: Stats | None, *, seed: int, form: Form
) -> FitResult:
    """Fits a resolved structure to the weight of a site.

    Raises:
        FitError: the weight has NaN or infinite entries, or the structure does not admit it.
    """
    return fit_weight(
        site.weight(),
        structure,
        stats,
        seed=seed,
        form=form,
        dtype=factor_type(site, form),
        corrected=has_bias(site),
        site=site.name,
    )


def fit_weight(
    weight: NDArray[np.float32],
    structure: Structure,
    stats: Stats | None,
    *,
    seed: int,
    form: Form,
    dtype: ir.DataType,
    corrected: bool,
    site: str,
) -> FitResult:
    """Fits a resolved structure to W, `[out_features, in_features]`.

    Args:
        weight: W; it is not changed.
        structure: resolved for the shape of W.
        stats: of the inputs, or None for a data-free fit.
        seed: of what is drawn at random.
        form: what the tensors are packed for.
        dtype: of the floating tensors; see `factor_type`.
        corrected: whether a bias takes up the mean error, if there are statistics.
        site: what errors name.

    Raises:
        FitError: the weight has NaN or infinite entries, or the structure does not admit it.
    """
    fitted_to = stats.centred() if stats is not None and corrected else stats
    factors = structure.fit(weight, fitted_to, seed=seed, site=site)
    tensors = packed(structure, factors, form, dtype, site)
    if Fitted(structure, tensors).dtype != ir.DataType.FLOAT:
        factors = structure.unpack(tensors, *weight.shape)
    dense = structure.dense(factors)
    moment = None if stats is None else stats.second_moment
    left = None if fitted_to is None else fitted_to.second_moment
    error = relative_error(weight, dense, moment, left)
    correction = mean_error(weight, dense, stats) if stats is not None and corrected else None
    return FitResult(Fitted(structure, tensors, correction), error)


def packed(
    structure: Structure, factors: Factors, form: Form, dtype: ir.DataType, site: str
) -> dict[str, ir.TensorProtocol]:
    """The tensors of a site's factors, floating ones rounded to `dtype`; see `factor_type`.

    Raises:
        FitError: factors too large for that type.
    """
    tensors = structure.pack(factors, form)
    return tensors if dtype == ir.DataType.FLOAT else _narrowed(tensors, dtype, site)


def factor_type(site: Site, form: Form, dtype: ir.DataType | None = None) -> ir.DataType:
    """The type of a site's floating factors: on CUDA the 16 bits that all its uses compute in.

    CPUs compute those in float32 anyway, and their kernels want float32 factors. `dtype` is what
    the model will be converted to.
    """
    dtypes = {dtype or use.dtype for use in site.uses}
    if form == "cuda" and len(dtypes) == 1 and dtypes <= set(_HALF_TYPES):
        return dtypes.pop()
    return ir.DataType.FLOAT


def _narrowed(
    tensors: Mapping[str, ir.TensorProtocol], dtype: ir.DataType, site: str
) -> dict[str, ir.TensorProtocol]:
    """The tensors, floating ones rounded to `dtype`."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == ir.DataType.FLOAT:
            with np.errstate(over="ignore"):
                rounded = tensor.numpy().astype(dtype.numpy())
            if not np.isfinite(rounded.astype(np.float32)).all():
                raise FitError(
                    site,
                    f"its {name} do not fit {dtype.name.lower()}",
                    "choose another scheme, or bfloat16 or float32 for the model",
                )
            found[name] = ir.tensor(rounded)
    return found
