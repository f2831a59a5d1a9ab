"""The grids that codes are rounded to: integer steps, and the sums of free trit-planes.

A grid belongs to one group of columns and has its own values for every row. Importance weighs the
squared error of a column; with statistics it is the diagonal of the second moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ..linalg import Codes, Matrix, compensate, nearest_codes

Planes = NDArray[np.int8]
Scales = NDArray[np.float32]

_SWEEP_STEPS = 32
_SMALLEST = np.finfo(np.float32).tiny
_MAX_ALTERNATIONS = 50
_SCALE_TOLERANCE = 1e-4
_START_RATIOS = (3.0, 1.7)
_RIDGE, _MAX_RIDGE, _MAX_CONDITION = 1e-8, 1.0, 1e6


@dataclass(frozen=True, eq=False)
class IntegerLevels:
    """`c · step` for the integers c from `low` to `high`.

    Attributes:
        step: `[rows]`, exact in float32; negative where the longer side of the range is wanted for
            negative weights, zero for a row of zeros.
        low, high: the range of codes.
    """

    step: Matrix
    low: int
    high: int

    def of_rows(self, rows: slice) -> IntegerLevels:
        """The levels of some of the rows."""
        return replace(self, step=self.step[rows])

    def nearest(self, values: Matrix) -> tuple[Codes, Matrix]:
        """Codes of the nearest levels, and these levels, for `values: [..., rows]`."""
        inverse = np.divide(1, self.step, out=np.zeros_like(self.step), where=self.step != 0)
        codes = np.clip(np.rint(values * inverse), self.low, self.high)
        return codes.astype(np.int16), codes * self.step


def fit_integer_levels(weights: Matrix, importance: Matrix, low: int, high: int) -> IntegerLevels:
    """The step with the least `Σ_j h_j (w_j − c_j step)²`, by a sweep and a least-squares polish.

    The sweep goes from a grid that just holds the largest weight to one that clips: by 2.5 times
    for codes to 4, by a quarter for codes to 127. Where the range is longer below zero, the step
    is negative if the largest weight is positive, so that the extra code is used.

    Args:
        weights: `[rows, columns]`.
        importance: h, `[columns]`, not negative.
        low: the lowest code.
        high: the highest code, at most `-low`.
    """
    rows = np.arange(weights.shape[0])
    largest = weights[rows, np.abs(weights).argmax(axis=1)]
    if low == -high:
        largest = np.abs(largest)
    whole, importance = -low, importance.astype(np.float64)
    fitted = weights.astype(np.float32)
    best_step = -largest / whole if low != -high else largest / whole
    best = np.full(weights.shape[0], np.inf)
    for stretch in np.linspace(0.95, 1 + 3 / np.sqrt(whole), _SWEEP_STEPS):
        step = (-largest if low != -high else largest) / (whole * stretch)
        error, _ = _integer_error(fitted, importance, step, low, high)
        best_step, best = _keep_better(best_step, best, step, error)
    for _ in range(2):
        _, codes = _integer_error(fitted, importance, best_step, low, high)
        energy = np.square(codes) @ importance
        wanted = (codes * fitted) @ importance
        step = np.divide(wanted, energy, out=best_step.copy(), where=energy > 0)
        error, _ = _integer_error(fitted, importance, step, low, high)
        best_step, best = _keep_better(best_step, best, step, error)
    return IntegerLevels(best_step.astype(np.float32).astype(np.float64), low, high)


def _integer_error(
    weights: NDArray[np.float32], importance: Matrix, step: Matrix, low: int, high: int
) -> tuple[Matrix, NDArray[np.float32]]:
    """The weighted squared error of each row, and the codes, in float32 for speed."""
    column = step.astype(np.float32)[:, None]
    # The inverse of a smaller step would be infinite: rows of rounding noise have such.
    inverse = np.divide(1, column, out=np.zeros_like(column), where=np.abs(column) >= _SMALLEST)
    codes = weights * inverse
    np.rint(codes, out=codes)
    np.clip(codes, low, high, out=codes)
    error = codes * column
    error -= weights
    np.square(error, out=error)
    return error @ importance, codes


def _keep_better(
    best_step: Matrix, best: Matrix, step: Matrix, error: Matrix
) -> tuple[Matrix, Matrix]:
    better = error < best
    return np.where(better, step, best_step), np.where(better, error, best)


@dataclass(frozen=True, eq=False)
class TritLevels:
    """`Σ_k t_k · scale_k` for all `3^K` patterns of trits `t_k ∈ {−1, 0, 1}`.

    A code is the number of a row in `trit_patterns`.

    Attributes:
        scales: `[planes, rows]`, not negative, exact in float32.
    """

    scales: Matrix

    def of_rows(self, rows: slice) -> TritLevels:
        """The levels of some of the rows."""
        return replace(self, scales=self.scales[:, rows])

    def nearest(self, values: Matrix) -> tuple[Codes, Matrix]:
        """Codes of the nearest levels, and these levels, for `values: [..., rows]`."""
        levels, patterns = self._sorted()
        borders = (levels[1:] + levels[:-1]) / 2
        position = np.zeros(values.shape, np.int64)
        for border in borders:
            position += values > border
        rows = np.arange(values.shape[-1])
        return patterns[position, rows], levels[position, rows]

    def _sorted(self) -> tuple[Matrix, Codes]:
        """Levels in rising order, `[3^K, rows]`, and the pattern of each."""
        patterns = trit_patterns(self.scales.shape[0])
        levels = patterns.astype(np.float64) @ self.scales
        # Of equal levels the one with fewer trits comes first, so that ties are always the same.
        trits = np.broadcast_to(np.abs(patterns).sum(axis=1)[:, None], levels.shape)
        order = np.lexsort((trits, levels), axis=0)
        return np.take_along_axis(levels, order, axis=0), order.astype(np.int16)


@cache
def trit_patterns(planes: int) -> NDArray[np.int8]:
    """All patterns of trits, `[3^planes, planes]`; row `Σ_k (t_k + 1) 3^(planes-1-k)` is t."""
    grid = np.meshgrid(*[np.arange(-1, 2, dtype=np.int8)] * planes, indexing="ij")
    return np.stack([axis.ravel() for axis in grid], axis=1)


def fit_trit_levels(weights: Matrix, importance: Matrix, planes: int) -> TritLevels:
    """Scales with a small `Σ_j h_j (w_j − Σ_k scale_k t_kj)²`, by alternation.

    Ridge regression for the scales and the nearest of the `3^K` levels for the trits, in turn
    (PTQTP, arXiv 2509.16989); the ridge grows where the Gram matrix of the planes is singular.
    The published start, all planes equal to the sign, is such a singular one. Two others are run
    and the better is taken for each row: scales in the ratio 3, which are tied trit-planes, and
    1.7, whose levels are wider apart towards the ends, where Gaussian weights are few (relative
    error of two planes on Gaussian rows of 128: 0.168, 0.162, and 0.160 for the better).

    Args:
        weights: `[rows, columns]`.
        importance: h, `[columns]`, not negative.
        planes: K.
    """
    high = (3**planes - 1) // 2
    largest = fit_integer_levels(weights, importance, -high, high).step * high
    best = np.zeros((planes, weights.shape[0]))
    best_error = np.full(weights.shape[0], np.inf)
    for ratio in _START_RATIOS[: 1 if planes == 1 else None]:
        powers = ratio ** np.arange(planes - 1, -1, -1)[:, None]
        scales, error = _alternate(weights, importance, powers / powers.sum() * largest)
        best = np.where(error < best_error, scales, best)
        best_error = np.minimum(error, best_error)
    return TritLevels(best.astype(np.float32).astype(np.float64))


def _alternate(weights: Matrix, importance: Matrix, scales: Matrix) -> tuple[Matrix, Matrix]:
    """The best scales on the way from a start, `[planes, rows]`, and their weighted errors.

    A row is left alone once its scales no longer change.
    """
    patterns = trit_patterns(scales.shape[0])
    products = (patterns[:, :, None] * patterns[:, None, :]).reshape(len(patterns), -1)
    best, best_error = scales.copy(), np.full(scales.shape[1], np.inf)
    active = np.arange(scales.shape[1])
    for _ in range(_MAX_ALTERNATIONS):
        rows = weights[active]
        codes, levels = TritLevels(scales).nearest(rows.T)
        error = importance @ np.square(rows.T - levels)
        better = error < best_error[active]
        best[:, active[better]], best_error[active[better]] = scales[:, better], error[better]
        gram = _sums(products, codes, importance[:, None])
        wanted = _sums(patterns, codes, importance[:, None] * rows.T)
        size = scales.shape[0]
        fitted = np.abs(_ridge_solve(gram.T.reshape(-1, size, size), wanted.T[..., None])[..., 0]).T
        fitted = -np.sort(-fitted, axis=0)
        moving = np.abs(fitted - scales).max(axis=0) > _SCALE_TOLERANCE * fitted.max(axis=0)
        scales, active = fitted[:, moving], active[moving]
        if not active.size:
            break
    return best, best_error


def _sums(table: NDArray[np.int8], codes: Codes, weights: Matrix) -> Matrix:
    """`Σ_columns weights · table[codes]`, `[entries, rows]`, for codes `[columns, rows]`."""
    return np.stack([(entry[codes] * weights).sum(axis=0) for entry in table.T])


def _ridge_solve(gram: Matrix, wanted: Matrix) -> Matrix:
    """`(G + λI)⁻¹ b` for each row, with λ just large enough for a sound condition number."""
    size = gram.shape[-1]
    scale = np.trace(gram, axis1=1, axis2=2) / size
    scale[scale == 0] = 1
    values = np.linalg.eigvalsh(gram / scale[:, None, None])
    ridge = np.full(len(gram), _RIDGE)
    while True:
        singular = (values[:, -1] + ridge > _MAX_CONDITION * (values[:, 0] + ridge)) & (
            ridge < _MAX_RIDGE
        )
        if not singular.any():
            break
        ridge[singular] *= 10
    return np.linalg.solve(gram + (ridge * scale)[:, None, None] * np.eye(size), wanted)


def integer_codes(
    weight: Matrix, second_moment: Matrix | None, low: int, high: int, group_size: int
) -> tuple[Planes, Scales]:
    """Codes `[m, n]` and steps `[m, groups]`: compensated, or nearest without a moment."""
    fit_levels = partial(fit_integer_levels, low=low, high=high)
    if second_moment is None:
        codes, groups = nearest_codes(weight, fit_levels, group_size)
    else:
        codes, groups = compensate(weight, second_moment, fit_levels, group_size)
    steps = np.stack([group.step for group in groups], axis=1)
    return codes.astype(np.int8), steps.astype(np.float32)


def trit_codes(
    weight: Matrix, second_moment: Matrix | None, planes: int, group_size: int
) -> tuple[Planes, Scales]:
    """Trits `[K, m, n]` and scales `[K, m, groups]`, as `integer_codes`."""
    fit_levels = partial(fit_trit_levels, planes=planes)
    if second_moment is None:
        codes, groups = nearest_codes(weight, fit_levels, group_size)
    else:
        codes, groups = compensate(weight, second_moment, fit_levels, group_size)
    trits = np.ascontiguousarray(np.moveaxis(trit_patterns(planes)[codes], -1, 0))
    scales = np.stack([group.scales for group in groups], axis=2)
    return trits, scales.astype(np.float32)
