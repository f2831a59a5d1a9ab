"""Options of sites: screened, fitted, and told of as the work that they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from graphs import graph, normal
from undense.passes.fit_jobs import fit_cost
from undense.passes.fit_options import fit_options
from undense.passes.options import site_options
from undense.passes.sites import Site, find_sites
from undense.passes.stats import Stats

N = 64


def _sites() -> list[Site]:
    text = f"""g (float[b,{N}] x) => (float[b,{N}] y) {{
        p = MatMul(x, a)  q = Relu(p)  r = MatMul(q, b)  s = Relu(r)  y = MatMul(s, c)
    }}"""
    weights = {name: normal(N, N, seed=seed) for seed, name in enumerate("abc")}
    return find_sites(graph(text, **weights))[0]


@pytest.mark.parametrize("guess", [1, 30])
def test_progress_is_of_the_options_that_screening_left(
    guess: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undense.passes.fit_options._KEPT", guess)
    sites = _sites()
    options = {site.name: site_options(site) for site in sites} | {"c": []}
    told: dict[str, list[tuple[int, int]]] = {}

    def progress(done: int, total: int, stage: str) -> None:
        told.setdefault(stage, []).append((done, total))

    def groups() -> Iterator[tuple[list[Site], dict[str, Stats]]]:
        yield sites[:1], {}
        yield sites[1:], {}

    found = fit_options(
        sites, options, groups(), calibrated=False, seed=0, form="fast", progress=progress
    )
    cost = fit_cost(N, N, calibrated=False)
    kept = {name: len(fits) for name, fits in found.items()}
    assert kept["c"] == 0
    assert min(kept["a"], kept["b"]) > 2
    *fits, last = told["fit"]
    assert last == (1, 1)
    assert all(done < total for done, total in fits)
    assert fits[0] == (0, (kept["a"] + min(guess, len(options["b"]))) * cost)
    assert fits[-1] == ((sum(kept.values()) - 1) * cost, sum(kept.values()) * cost)
    whole = (len(options["a"]) + len(options["b"])) * cost
    assert told["screen"] == [(0, whole), (whole / 2, whole), (whole / 2, whole), (1, 1)]
