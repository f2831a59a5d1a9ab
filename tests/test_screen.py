"""What screening leaves: the corners of each kind of kernel, up to what is as good as dense."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from graphs import normal
from undense.passes.cache import Cache
from undense.passes.decide import with_activations
from undense.passes.errors import FitError
from undense.passes.fit_jobs import Work
from undense.passes.linalg import relative_error
from undense.passes.screen import ScreenJob, screen_all, screened
from undense.passes.stats import Stats
from undense.passes.structures import candidates
from undense.passes.structures.int_codes import IntCodes
from undense.passes.structures.trit_planes import TritPlanes

SHAPE = (96, 128)
OPTIONS = tuple(dict.fromkeys(with_activations(option, "float") for option in candidates(*SHAPE)))


def _stats() -> Stats:
    x = normal(512, SHAPE[1], seed=1) * np.geomspace(1, 0.03, SHAPE[1])
    return Stats(x.T @ x, x.mean(0), len(x))


def _kept(options=OPTIONS, *, stats=None, floating=True, weight=None):
    weight = normal(*SHAPE) if weight is None else weight
    job = ScreenJob("s", weight, stats, tuple(options), floating, 0)
    return [options[number] for number in screened(job)]


@pytest.mark.parametrize("stats", [None, _stats()])
def test_every_kind_of_kernel_keeps_options(stats):
    kept = _kept(stats=stats)
    kinds = {option.kind for option in kept}
    assert {"int_codes", "trit_planes", "low_rank"} <= kinds
    assert len(kept) < len(OPTIONS) / 2
    planes = [option.planes for option in kept if isinstance(option, TritPlanes)]
    assert sorted(set(planes)) == [1, 2, 3]


def test_a_larger_group_is_kept_beside_one_that_is_better_and_smaller():
    shape = (96, 160)
    options = (IntCodes(bits_=8), IntCodes(bits_=8, group=32))
    weight = normal(*shape)
    large, small = (
        relative_error(weight, option.dense(option.fit(weight, None, seed=0, site="s")), None)
        for option in options
    )
    assert large > small
    assert options[0].bits(*shape) > options[1].bits(*shape)
    assert _kept(options, weight=weight) == list(options)
    assert _kept(options[::-1], weight=weight) == list(options[::-1])


def test_three_bits_are_kept_though_they_may_be_stored_in_four():
    options = (IntCodes(bits_=4), IntCodes(bits_=3))
    assert options[0].bits(*SHAPE) == options[1].bits(*SHAPE)
    assert _kept(options) == list(options)


def test_floating_forms_are_left_out_where_bytes_alone_count():
    kept = _kept(floating=False)
    assert {option.kind for option in kept} <= {"int_codes", "trit_planes", "residual", "low_rank"}
    assert not [option for option in kept if option.kind == "low_rank" and option.coded is None]
    assert set(kept) < set(_kept())


def test_nothing_is_kept_for_being_more_exact_than_dense_needs():
    kept = [option for option in _kept() if option.kind in ("int_codes", "residual")]
    dearest = max(kept, key=lambda option: option.bits(*SHAPE))
    assert str(dearest).startswith("int_codes{")
    more = [option for option in OPTIONS if option.bits(*SHAPE) > dearest.bits(*SHAPE)]
    assert any(str(option).startswith("int_codes{activations=float}+residual") for option in more)


def test_a_worker_of_another_version_is_refused():
    job = ScreenJob("s", normal(*SHAPE), None, OPTIONS, True, 0)
    with pytest.raises(FitError, match="s: the worker has other numpy than the process"):
        screened(replace(job, code={**job.code, "numpy": "1.0"}))


class _Counting(ThreadPoolExecutor):
    """Counts the most jobs that were handed over and not done yet."""

    most = waiting = 0

    def submit(self, *args, **options):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        future = super().submit(*args, **options)
        future.add_done_callback(self._done)
        return future

    def _done(self, _):
        self.waiting -= 1


def _screen_all(executor=None, cache=None):
    options = tuple(IntCodes(bits_=bits) for bits in (8, 4, 3))
    jobs = [
        ScreenJob(str(number), normal(*SHAPE, seed=number), None, options, True, 0)
        for number in range(9)
    ]
    told = []
    total = sum(job.cost for job in jobs)
    work = Work(total, lambda *step: told.append(step), "screen")
    found = dict(screen_all(jobs, work=work, executor=executor, in_flight=2, cache=cache))
    assert work.is_done
    return found, told


def test_jobs_are_handed_over_a_few_at_a_time_and_told_of(tmp_path):
    here, told = _screen_all()
    shares = [done / total for done, total, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(8 / 9)
    assert {stage for *_, stage in told} == {"screen"}
    with _Counting(2) as executor:
        found, _ = _screen_all(executor, Cache(tmp_path))
        assert executor.most == 2
    assert found == here
    assert _screen_all(cache=Cache(tmp_path))[0] == here


def test_what_is_kept_does_not_depend_on_the_order_of_the_options():
    assert set(_kept(OPTIONS[::-1])) == set(_kept())
