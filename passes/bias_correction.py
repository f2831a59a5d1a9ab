"""`b ← b + (W − Ŵ) μ`: the mean error of a fit goes into the bias behind it, at no cost.

What is left of the error is `tr(E Σ Eᵀ)` with `Σ = C − μᵀμ`, so that fits with a bias are made
under Σ. (Nagel et al., arXiv 1906.04721, for quantisation.)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .constants import FLOATS, trace
from .edits import initializer, only_reader
from .linalg import Matrix
from .sites import Site, Use
from .stats import Array, Stats
from .uses import float_attribute


def has_bias(site: Site) -> bool:
    """Whether a constant bias follows every use of a site; there can be no gather then."""
    return all(_has_bias(use, site.out_features) for use in site.uses)


def mean_error(weight: Array, approximation: Array, stats: Stats) -> Matrix:
    """`(W − Ŵ) μ`, `[out_features]`: what the outputs lack on average."""
    error = np.asarray(weight, np.float64) - approximation
    return np.asarray(error @ np.asarray(stats.mean, np.float64))


def correct_bias(product: ir.Value, correction: Matrix, site: str) -> None:
    """Adds a vector to the bias that is added to `product`, as a constant of its own."""
    adder = only_reader(product)
    index = None if adder is None else _bias_input(adder, correction.size)
    path = None if adder is None or index is None else trace(adder.inputs[index])
    if adder is None or index is None or path is None or not isinstance(adder.graph, ir.Graph):
        raise ValueError(f"{site}: no bias is added to its product")
    values = (path.read().astype(np.float64) + correction).astype(path.dtypes[-1].numpy())
    bias = initializer(adder.graph, f"{site}.bias", ir.tensor(values))
    adder.replace_input_with(index, bias)


def _has_bias(use: Use, size: int) -> bool:
    if use.form == "matmul":
        adder = only_reader(use.node.outputs[0])
        return adder is not None and _bias_input(adder, size) is not None
    if use.form not in ("gemm", "conv") or use.weight_input == 0 or len(use.node.inputs) < 3:
        return False
    unscaled = all(float_attribute(use.node, name) == 1 for name in ("alpha", "beta"))
    return unscaled and _is_vector(use.node.inputs[2], size)


def _bias_input(adder: ir.Node, size: int) -> int | None:
    """Which input of an Add is a constant vector of that size."""
    if (adder.domain, adder.op_type) != ("", "Add"):
        return None
    found = (index for index, value in enumerate(adder.inputs) if _is_vector(value, size))
    return next(found, None)


def _is_vector(value: ir.Value | None, size: int) -> bool:
    path = trace(value)
    return (
        path is not None
        and not path.value.is_graph_input()
        and path.tensor.dtype in FLOATS
        and path.shape == (size,)
    )
