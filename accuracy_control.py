"""Accuracy control: the worst layers are given back to dense until a metric holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .candidate import Candidate
from .passes.accuracy import AllowedDrop, GivenBack, give_back
from .passes.auto import exceeded
from .passes.budget import Budget
from .passes.errors import PlanError
from .passes.planning_report import chosen_report
from .planning import DENSE
from .runtime.atomic import temporary_sibling
from .runtime.function_model import FunctionModel
from .runtime.model import Model
from .runtime.unloaded import Unloaded

if TYPE_CHECKING:
    from .job import Captured, Decided, Job
    from .passes.fit import FitResult
    from .passes.plan import Choice
    from .planning import Planned
    from .runtime.artifact import Manifest
    from .validation import Validation


class AccuracyControl:
    """Holds what is compiled to the metric of the dense model.

    Attributes:
        allowed: the drop, and the metric of the dense model.
    """

    def __init__(
        self, job: Job, captured: Captured, validation: Validation, budget: Budget
    ) -> None:
        """Measures nothing yet."""
        self._job, self._captured, self._validation = job, captured, validation
        self._budget = budget
        self._evaluations = 0
        self._metrics: dict[frozenset[tuple[str, str]], float] = {}
        self.allowed: AllowedDrop

    def measure_dense(self) -> None:
        """Measures the dense model: behind what is refused at once, before anything long is done.

        Raises:
            ValidationError: the validation function fails.
            PlanError: the metric of the dense model is 0, and the drop is to be relative.
        """
        most, counted = self._budget.max_drop, self._validation.drop_type
        if most is None:
            raise ValueError("the budget has no max_drop to hold a metric to")
        self.allowed = AllowedDrop(self._predicted({}), most, counted)

    def holds(self, fits: Mapping[str, FitResult]) -> bool:
        """Whether the dense model with the weights of these fits keeps the metric."""
        return self._predicted_drop(fits) <= self.allowed.max_drop

    def build(self, decided: Decided, folder: Path) -> Manifest:
        """Writes what `Job.build` does, with the fewest layers given back with which it holds.

        What is built is measured on the engine of the target. Where that cannot run here, the
        dense model with exchanged weights stands in.

        Raises:
            PlanError: the drop cannot be kept, or not together with the limits on costs.
            ValidationError: the validation function fails.
        """
        fits = self._job.fit(self._captured.dense, decided)
        decided = replace(decided, fits=fits)
        candidates: list[_Candidate] = []

        @cache
        def worst_first() -> list[str]:
            return self._worst_first(decided)

        def worst(number: int) -> list[str]:
            return worst_first()[:number] if number else []  # none are compared if all may stay

        def predicted(number: int) -> float:
            return self._predicted_drop(_without(fits, worst(number)))

        def built(number: int) -> float:
            back = worst(number)
            failed = self.allowed.drop(candidates[-1].metric) if candidates else predicted(0)
            self._check_costs(decided.planned, back, failed)
            for candidate in candidates[-1:]:
                shutil.rmtree(candidate.built.artifact.path)
            # Each has a path of its own: a library is not loaded again from the same one.
            path = place / f"candidate-{number}"
            candidates[:] = [self._candidate(self._revised(decided, back), path)]
            return self.allowed.drop(candidates[-1].metric)

        with temporary_sibling(folder) as place:
            found = give_back(len(fits), predicted, built, self.allowed.max_drop)
            self._check_drop(found)
            rows = [
                {"site": name, "scheme": str(fits[name].fitted.structure), "drop_before": before}
                for name, before in zip(worst(len(found.before)), found.before, strict=True)
            ]
            return self._take(candidates[-1], found.drop, rows, folder)

    def _take(
        self,
        held: _Candidate,
        drop: float,
        given_back: Sequence[Mapping[str, Any]],
        folder: Path,
    ) -> Manifest:
        """Moves the files of a candidate to `folder`, with what was measured in its report."""
        validation = {
            "function": self._validation.name,
            "dense": self.allowed.dense,
            "compiled" if held.runs_here else "predicted": held.metric,
            "drop": drop,
            "max_drop": self.allowed.max_drop,
            "drop_type": self.allowed.drop_type,
            "given_back": list(given_back),
            "evaluations": self._evaluations,
        }
        notes = list(held.decided.notes)
        if not held.runs_here:
            notes.append(
                f"the dense model with exchanged weights stood in for {self._job.target} in the "
                "validation: there is no such device here"
            )
        latency = held.built.latency(held.decided.whole, self._budget, self._job.progress)
        changes = {"notes": notes, "validation": validation, "latency": latency}
        return held.built.move(folder, changes)

    def _candidate(self, decided: Decided, path: Path) -> _Candidate:
        """Builds an artifact and measures it, or what stands in for it."""
        captured = replace(self._captured, prepared=self._captured.prepared.clone())
        built = Candidate.build(path, lambda folder: self._job.build(captured, decided, folder))
        if isinstance(built.session, Unloaded):
            metric = self._predicted(decided.fits or {})
        else:
            metric = self._metric(built.session, "the compiled model")
        return _Candidate(built, decided, metric)

    def _revised(self, decided: Decided, back: Sequence[str]) -> Decided:
        """The decisions with these sites dense."""
        choices = tuple(
            replace(
                choice,
                scheme=DENSE,
                reason=f"given back: as {choice.scheme} it was among the worst of those with which "
                f"the metric drops by more than {self.allowed.max_drop:g}",
            )
            if choice.name in back
            else choice
            for choice in decided.plan.sites
        )
        planned = decided.planned
        if planned is not None and back:
            planned = replace(planned, report=self._plan_report(decided, back, choices))
        return replace(
            decided,
            plan=replace(decided.plan, sites=choices),
            fits=_without(decided.fits or {}, back),
            notes=list(decided.notes),
            planned=planned,
        )

    def _plan_report(
        self, decided: Decided, back: Sequence[str], choices: Sequence[Choice]
    ) -> dict[str, Any]:
        """The report of a plan, with these sites dense."""
        planned = decided.planned
        assert planned is not None
        with self._distortions(decided) as distortion_of:
            joint = distortion_of(_without(decided.fits or {}, back))
        chosen = _chosen_without(planned, back)
        settled = replace(planned.settled, chosen=chosen, joint=joint)
        return {**planned.report, **chosen_report(settled, self._budget, choices)}

    @contextmanager
    def _distortions(
        self, decided: Decided
    ) -> Iterator[Callable[[Mapping[str, FitResult]], float]]:
        """Measures what fits do to the outputs together, while this lasts."""
        from .frontend.distortion import compared_on, distortion
        from .frontend.exchange import Exchange

        shapes = {site.name: (site.out_features, site.in_features) for site in decided.sites}
        samples = compared_on(decided.held_out, decided.samples or ())
        with distortion(self._captured.dense, decided.fits or {}, samples) as measured:
            yield lambda fits: measured.of(
                (name, Exchange.of(found.fitted, shapes[name])) for name, found in fits.items()
            )

    def _worst_first(self, decided: Decided) -> list[str]:
        """The replaced sites, those that alone change the outputs the most in front."""
        fits = decided.fits or {}
        alone: dict[str, float] = {}
        if decided.planned is not None:
            settled = decided.planned.settled
            taken = settled.model.taken(settled.chosen)
            sites = [site.name for site in settled.model.sites]
            alone = {n: option.distortion for n, option in zip(sites, taken, strict=True)}
        else:
            with self._distortions(decided) as distortion_of:
                for number, (name, found) in enumerate(fits.items(), 1):
                    alone[name] = distortion_of({name: found})
                    self._job.progress(number, len(fits), "measure")
        return sorted(fits, key=lambda name: -alone[name])

    def _check_costs(self, planned: Planned | None, back: Sequence[str], drop: float) -> None:
        """Refuses what no longer keeps the limits on costs."""
        if planned is None:
            return
        chosen = _chosen_without(planned, back)
        for name, cost in exceeded(planned.settled.model, self._budget, chosen).items():
            raise PlanError(
                f"budget: max_drop={self.allowed.max_drop:g} of the metric cannot be kept together "
                f"with {name}={getattr(self._budget, name):g}: within that the metric drops by "
                f"{drop:.3g}, and with the {len(back)} worst layers dense {name} is {cost:.3g}; "
                "raise one of them"
            )

    def _check_drop(self, found: GivenBack) -> None:
        """Refuses what drops too far with every layer dense: nothing is left to give back."""
        dtype, most = self._job.dtype, self.allowed.max_drop
        if found.drop <= most:
            return
        cause, remedy = "by another engine, or by a metric that is not the same again", "mend that"
        if dtype is not None:
            cause = f"since the model is converted to {dtype.numpy().name}"
            remedy = "leave dtype out"
        raise PlanError(
            f"budget: max_drop={most:g} of the metric cannot be kept: with every layer dense it "
            f"drops by {found.drop:.3g}, {cause}; raise it, or {remedy}"
        )

    def _metric(self, model: Model, which: str) -> float:
        self._job.progress(0, 1, "validate")
        found = self._validation.metric(model, which)
        self._evaluations += 1
        self._job.progress(1, 1, "validate")
        return found

    def _predicted(self, fits: Mapping[str, FitResult]) -> float:
        """The metric of the dense model with the weights of these fits."""
        from .backend.package import tensor_infos
        from .frontend.bounds import dimension_bounds, index_bounds
        from .frontend.exchange import Exchange, exchangeable
        from .frontend.samples import typed
        from .passes.sites import find_sites

        key = frozenset((name, str(found.fitted.structure)) for name, found in fits.items())
        if key not in self._metrics:
            dense, graph = self._captured.dense, self._captured.prepared.graph
            shapes = {s.name: (s.out_features, s.in_features) for s in find_sites(dense)[0]}
            with exchangeable(dense, fits) as model:
                run = model.exchanged(
                    (name, Exchange.of(found.fitted, shapes[name])) for name, found in fits.items()
                )
                called = FunctionModel(
                    tensor_infos(graph.inputs, index_bounds(dense)),
                    tensor_infos(graph.outputs, {}),
                    dimension_bounds(self._captured.prepared),
                    lambda inputs: run(typed(inputs, dense)),
                )
                which = "the dense model with other weights" if fits else "the dense model"
                self._metrics[key] = self._metric(called, which)
        return self._metrics[key]

    def _predicted_drop(self, fits: Mapping[str, FitResult]) -> float:
        return self.allowed.drop(self._predicted(fits))


@dataclass(frozen=True)
class _Candidate:
    """An artifact that may hold.

    Attributes:
        built: in a temporary folder.
        decided: what it was built from.
        metric: of it, or of the dense model with its weights.
    """

    built: Candidate
    decided: Decided
    metric: float

    @property
    def runs_here(self) -> bool:
        """Whether the metric is its own."""
        return not isinstance(self.built.session, Unloaded)


def _without(fits: Mapping[str, FitResult], names: Sequence[str]) -> dict[str, FitResult]:
    return {name: found for name, found in fits.items() if name not in names}


def _chosen_without(planned: Planned, back: Sequence[str]) -> list[int]:
    """The numbers of the options, with these sites dense."""
    settled = planned.settled
    pairs = zip(settled.model.sites, settled.chosen, strict=True)
    return [0 if site.name in back else number for site, number in pairs]
