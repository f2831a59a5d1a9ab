"""Sites × options → fits: the same by a plan that is made, and by one that is carried out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .frontend.calibrate import calibrate, refused
from .passes.decide import kept_dense
from .passes.fit_options import fit_options
from .passes.sites import Site
from .passes.stats import Stats

if TYPE_CHECKING:
    import onnx_ir as ir

    from .frontend.samples import Samples
    from .job import Job
    from .passes.fit import FitResult
    from .passes.plan import Choice
    from .passes.structures.base import Structure


def fit_sites(
    job: Job,
    model: ir.Model,
    sites: Sequence[Site],
    options: Mapping[str, Sequence[Structure]],
    samples: Samples | None,
    *,
    floating: bool = True,
    named: dict[str, Choice] | None = None,
) -> dict[str, dict[str, FitResult]]:
    """The fits of each site by scheme text.

    Args:
        job: how fits are made.
        model: the dense one, as captured.
        sites: all of the model, also those that stay dense: what is calibrated together decides
            the bytes of the statistics, so that it must not depend on what is fitted.
        options: of each site; none for those that stay dense.
        samples: to calibrate on; None for data-free fits.
        floating: whether low rank and Monarch, which can only be faster than codes, are wanted.
        named: the choices of sites whose scheme was asked for, where others may stay dense: those
            that cannot be calibrated are added as dense, with the reason. None is all of them.

    Raises:
        CalibrationError: a site whose scheme was asked for cannot be calibrated; as `calibrate`.
        FitError: as `fit_options`.
    """

    def refuse(site: Site, cause: str) -> None:
        if named is None or site.name in named:
            refused(site, cause)
        named[site.name] = kept_dense(site, f"kept dense: {cause}")

    groups: Iterable[tuple[list[Site], dict[str, Stats]]] = [(list(sites), {})]
    if samples is not None:
        groups = calibrate(
            model,
            sites,
            samples,
            wanted={name for name, found in options.items() if found},
            refuse=refuse,
            cache=job.cache,
            progress=job.progress,
        )
    return fit_options(
        sites,
        options,
        groups,
        calibrated=samples is not None,
        floating=floating,
        seed=job.seed,
        form=job.form,
        dtype=job.dtype,
        cache=job.cache,
        scheduler=job.scheduler,
        progress=job.progress,
    )
