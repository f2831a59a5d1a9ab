"""Jobs of fits for tests: small ones of every scheme, and some that fail or take their time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from graphs import normal
from numpy.typing import NDArray
from undense.passes.errors import FitError
from undense.passes.fit import FitResult
from undense.passes.fit_jobs import FitJob, Work, fit_all
from undense.passes.progress import Progress, silent
from undense.passes.scheme import parse_scheme
from undense.passes.stats import Stats, StatsAccumulator
from undense.passes.structures.base import Form, Structure
from undense.passes.structures.low_rank import LowRank

SCHEMES = [
    "int_codes{bits=4,group=32}",
    "int_codes{bits=6,group=32}",
    "int_codes{bits=3,group=32}",
    "trit_planes{planes=2,group=32}",
    "trit_planes{planes=3,group=32,tied=false}",
    "low_rank{ratio=0.5}",
    "monarch{ratio=0.5}",
]


def _stats(in_features: int) -> Stats:
    sums = StatsAccumulator(in_features)
    sums.update(normal(3 * in_features, in_features, seed=9))
    return sums.result()


def small_job(
    scheme: str = "low_rank{rank=8}",
    site: str = "layer",
    *,
    shape: tuple[int, int] = (96, 64),
    calibrated: bool = True,
    form: Form = "fast",
    dtype: ir.DataType = ir.DataType.FLOAT,
    weight: int = 1,
) -> FitJob:
    structure = parse_scheme(scheme)
    assert isinstance(structure, Structure)
    stats = _stats(shape[1]) if calibrated else None
    resolved = structure.resolve(*shape, site=site)
    return FitJob(site, normal(*shape, seed=weight), resolved, stats, 0, form, dtype)


def _bytes(result: FitResult) -> list[Any]:
    tensors = [
        (name, tensor.dtype, list(tensor.shape), tensor.tobytes())
        for name, tensor in result.fitted.tensors.items()
    ]
    return [*tensors, result.relative_error, str(result.fitted.structure)]


def fitted_bytes(
    jobs: list[FitJob], *, progress: Progress = silent, **options: Any
) -> dict[str, list[Any]]:
    work = Work(sum(job.cost for job in jobs), progress)
    found = fit_all(jobs, work=work, **options)
    return {name: _bytes(result) for name, result in found}


def jobs_of_all_schemes() -> list[FitJob]:
    return [
        small_job(scheme, f"{scheme} {calibrated}", shape=(192, 128), calibrated=calibrated)
        for scheme in SCHEMES
        for calibrated in (False, True)
    ]


@dataclass(frozen=True)
class _Failing(LowRank):
    """Fails for some sites, and takes its time for others."""

    def fit(
        self, weight: NDArray[np.floating], stats: Stats | None, *, seed: int, site: str
    ) -> Any:
        if site.startswith("slow"):
            time.sleep(0.5)
        if site == "wrong":
            raise FitError(site, "its rank is odd", "choose another one")
        if site == "broken":
            raise ZeroDivisionError("a mistake")
        return super().fit(weight, stats, seed=seed, site=site)


def failing_job(site: str, weight: int) -> FitJob:
    return replace(small_job(site=site, weight=weight), structure=_Failing(rank=4))
