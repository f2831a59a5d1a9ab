"""The weights of the kernel benchmark: one random matrix a shape, and its structured forms."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from undense.passes.scheme import parse_scheme
from undense.passes.structures.base import Factors, Structure
from undense.passes.structures.block_quantized import BlockQuantized, round_activations
from undense.passes.structures.trit_planes import TritPlanes

from .kernel_layer import Array, Layer, Load, checked_outputs

_FITTED_ROWS = 256
"""Rows of codes that are fitted; further ones repeat them, which changes no time."""


@dataclass(frozen=True, eq=False)
class Form:
    """A structure fitted to a weight.

    Attributes:
        structure: resolved.
        factors: its own.
        checked: rows of Ŵ that are compared, in float64.
    """

    structure: Structure
    factors: Factors
    checked: Array

    @property
    def rounds(self) -> bool:
        """Whether x is rounded to int8."""
        return getattr(self.structure, "activations", None) == "int8"

    def rounded(self, x: Array) -> Array:
        """The input in int8 with a scale a block, in float64."""
        assert isinstance(self.structure, BlockQuantized)
        rounded: Array = round_activations(x, self.structure.block)
        return rounded


@dataclass(eq=False)
class Weight:
    """A random matrix and its forms, which are fitted once.

    Attributes:
        dense: `[out_features, in_features]`, float32.
    """

    dense: NDArray[np.float32]
    _factors: dict[Structure, Factors] = field(default_factory=dict)

    @classmethod
    def random(cls, out_features: int, in_features: int) -> Weight:
        """Normal entries with outputs about as large as inputs."""
        entries = np.random.default_rng(0).standard_normal((out_features, in_features), np.float32)
        return cls(entries / np.float32(np.sqrt(in_features)))

    @property
    def out_features(self) -> int:
        """Rows."""
        return int(self.dense.shape[0])

    @property
    def in_features(self) -> int:
        """Columns."""
        return int(self.dense.shape[1])

    @property
    def checked(self) -> Array:
        """The rows that are compared, in float64."""
        rows: Array = self.dense[checked_outputs(self.out_features)].astype(np.float64)
        return rows

    def layer(self, engine: str, scheme: str, stored_bytes: int, load: Load) -> Layer:
        """The weight as it is in an engine."""
        return Layer(
            engine=engine,
            scheme=scheme,
            out_features=self.out_features,
            in_features=self.in_features,
            weight=self.checked,
            macs=self.dense.size,
            stored_bytes=stored_bytes,
            load=load,
        )

    def form(self, scheme: str) -> Form:
        """The form that a scheme text names; how it is stored and rounds x changes no factor."""
        structure = parse_scheme(scheme)
        assert isinstance(structure, Structure)
        structure = structure.resolve(*self.dense.shape, site=scheme)
        fitted = structure
        if isinstance(fitted, BlockQuantized):
            fitted = fitted.with_activations("auto")
        if isinstance(fitted, TritPlanes):
            fitted = TritPlanes(planes=fitted.planes, group=fitted.group, tied=fitted.tied)
        if fitted not in self._factors:
            self._factors[fitted] = self._fit(fitted)
        factors = self._factors[fitted]
        checked = checked_outputs(self.out_features)
        if isinstance(structure, BlockQuantized):
            some = {name: np.take(factor, checked, axis=-2) for name, factor in factors.items()}
            return Form(structure, factors, structure.dense(some))
        return Form(structure, factors, structure.dense(factors)[checked])

    def _fit(self, structure: Structure) -> Factors:
        if not isinstance(structure, BlockQuantized):
            return structure.fit(self.dense, None, seed=0, site=str(structure))
        fitted = structure.fit(self.dense[:_FITTED_ROWS], None, seed=0, site=str(structure))
        rows = np.arange(self.out_features) % min(_FITTED_ROWS, self.out_features)
        return {name: np.take(factor, rows, axis=-2) for name, factor in fitted.items()}
