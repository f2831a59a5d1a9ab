"""`TvmModule`: a compiled model, its code apart from its weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.artifact import CUBLAS
from ..cuda.cublas import cublas_library


@dataclass(frozen=True, eq=False)
class Signature:
    """Name, numpy dtype and shape of an input or output; symbolic dimensions are expressions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class TvmModule:
    """The function `main(inputs..., parameters...) -> tuple of outputs`, compiled.

    Attributes:
        executable: the Relax VM executable.
        weights: the parameters by name, in the order in which `main` takes them.
        inputs, outputs: signatures in the order of the graph.
        dimension_bounds: lowest and highest allowed value of symbolic dimensions; a key may be an
            expression such as `past + seq`. The code does not check them: a session must.
        sources: the site or constant of the model that each weight is made of.
        generic_functions: names of the PrimFuncs that only the last rule scheduled, with its name,
            or that none did, with None: the first to look at where time is lost.
        libraries: that the code calls, by their names in `-libs=` of a target.
    """

    executable: Any
    weights: dict[str, NDArray[np.generic]]
    inputs: Sequence[Signature]
    outputs: Sequence[Signature]
    dimension_bounds: dict[str, tuple[int, int | None]]
    sources: Mapping[str, str]
    generic_functions: dict[str, str | None]
    libraries: frozenset[str] = frozenset()

    @property
    def parameter_names(self) -> list[str]:
        """Names of the parameters in the order in which `main` takes them."""
        return list(self.weights)

    @property
    def bytes_by_name(self) -> dict[str, int]:
        """Bytes of the weights that each site or constant of the model became."""
        found: Counter[str] = Counter()
        for name, array in self.weights.items():
            found[self.sources[name]] += array.nbytes
        return dict(found)

    def export(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `module.so`, the code without weights, and returns its path.

        Beside it `cublas.so`, if the code calls it.
        """
        path = Path(folder) / "module.so"
        self.executable.export_library(str(path))
        if "cublas" in self.libraries:
            (Path(folder) / CUBLAS).write_bytes(cublas_library())
        return path
