from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal
from helpers import assert_close
from numpy.typing import NDArray
from undense.frontend import dense
from undense.frontend.calibrate import calibrate
from undense.frontend.dense import dense_session, run_dense
from undense.frontend.samples import Samples, read_samples
from undense.passes.cache import Cache
from undense.passes.errors import CalibrationError, LoadError
from undense.passes.sites import Site, find_sites
from undense.passes.stats import Stats

Array = NDArray[Any]
N = 40


def chain(**changed: Any) -> ir.Model:
    """Three siblings on x, then one on their sum, then one on its rectification."""
    weights = {"q": normal(N, N), "k": normal(N, N, seed=1), "v": normal(N, N, seed=2)}
    weights |= {"o": normal(N, 48, seed=3), "down": normal(48, N, seed=4)}
    return graph(
        f"""g (float[b,t,{N}] x) => (float[b,t,{N}] y) {{
            a = MatMul(x, q)  b1 = MatMul(x, k)  c = MatMul(x, v)
            s = Sum(a, b1, c)  h = MatMul(s, o)  r = Relu(h)  y = MatMul(r, down)
        }}""",
        **(weights | changed),
    )


def samples_of(model: ir.Model, *lengths: int) -> Samples:
    arrays = [normal(2, t, N, seed=t) * np.float32(3) for t in lengths]
    return read_samples([(array,) for array in arrays], model)


def everything(model: ir.Model, samples: Samples, **options: Any) -> dict[str, Stats]:
    found: dict[str, Stats] = {}
    for _, stats in calibrate(model, find_sites(model)[0], samples, **options):
        found |= stats
    return found


def expected(rows: Array) -> tuple[Array, Array]:
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    return rows.T @ rows / len(rows), rows.mean(axis=0)


def test_statistics_equal_those_of_all_rows_at_once() -> None:
    model = chain()
    samples = samples_of(model, 3, 1, 400)
    found = everything(model, samples)
    weights = {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    x = np.concatenate([item["x"].reshape(-1, N) for item in samples]).astype(np.float64)
    s = x @ (weights["q"] + weights["k"] + weights["v"])
    r = np.maximum(s @ weights["o"], 0)
    for name, rows in (("q", x), ("o", s), ("down", r)):
        moment, mean = expected(rows)
        assert found[name].tokens == 2 * 404
        assert_close(found[name].second_moment, moment, reduction=808 + 3 * N)
        # The bound is that of the sum: its terms are larger than a mean near nought.
        scale = np.abs(rows).mean()
        assert np.abs(found[name].mean - mean).max() <= 8 * 808 * np.finfo(np.float32).eps * scale


def test_siblings_share_one_statistic() -> None:
    model = chain()
    found = everything(model, samples_of(model, 3))
    assert found["q"] is found["k"] is found["v"]
    assert found["q"] is not found["o"]


def test_groups_are_as_large_as_the_memory_allows_and_give_the_same() -> None:
    model = chain()
    samples = samples_of(model, 3, 5)
    sites, _ = find_sites(model)

    def names(limit: int) -> list[list[str]]:
        groups = calibrate(model, sites, samples, memory_limit_bytes=limit)
        return [[site.name for site in group] for group, _ in groups]

    assert names(2**30) == [["q", "k", "v", "o", "down"]]
    assert names(1) == [["q", "k", "v"], ["o"], ["down"]]
    one, many = everything(model, samples), everything(model, samples, memory_limit_bytes=1)
    for name, stats in one.items():
        assert np.array_equal(stats.second_moment, many[name].second_moment)
        assert np.array_equal(stats.mean, many[name].mean)


def test_a_group_runs_only_what_leads_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = dense.open_session

    def spy(stored: ir.Model, **options: Any) -> dense.Run:
        sizes.append((len(stored.graph), sorted(stored.graph.initializers)))
        return real(stored, **options)

    monkeypatch.setattr("undense.frontend.calibrate.open_session", spy)
    model = chain()
    before = len(model.graph)
    everything(model, samples_of(model, 3), memory_limit_bytes=1)
    # The input itself, by a Cast that names it; three products and their sum; and two nodes more.
    assert sizes == [(1, []), (4, ["k", "q", "v"]), (6, ["k", "o", "q", "v"])]
    assert len(model.graph) == before
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_progress_counts_samples_over_all_groups() -> None:
    model = chain()
    told: list[tuple[int, int, str]] = []
    everything(
        model,
        samples_of(model, 3, 4),
        memory_limit_bytes=1,
        progress=lambda done, total, text: told.append((done, total, text)),
    )
    assert told == [(done, 6, "calibrate") for done in range(1, 7)]


def one_site(model: ir.Model, name: str) -> tuple[Site, Stats | None]:
    found = everything(model, read_samples([_feed(model)], model))
    (site,) = (site for site in find_sites(model)[0] if site.name == name)
    return site, found.get(name)


def _feed(model: ir.Model) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    feed = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [dim if isinstance(dim, int) else 3 for dim in value.shape]
        draw = rng.standard_normal(shape) * 3
        feed[str(value.name)] = np.abs(draw).astype(value.dtype.numpy())
    return feed


def test_features_may_stand_on_any_axis() -> None:
    image = graph(
        f"g (float[b,{N},h,k] x) => (float[b,48,h,k] y) {{ y = Conv(x, w) }}",
        w=normal(48, N, 1, 1),
    )
    turned = graph(
        f"g (float[{N},b] x) => (float[b,48] y) {{ y = Gemm<transA=1>(x, w) }}", w=normal(N, 48)
    )
    left = graph(
        f"g (float[b,{N},t] x) => (float[b,48,t] y) {{ y = MatMul(w, x) }}", w=normal(48, N)
    )
    for model, axis in ((image, 1), (turned, 0), (left, 1)):
        rows = np.moveaxis(_feed(model)["x"], axis, -1)
        moment, _ = expected(rows)
        _, stats = one_site(model, "w")
        assert stats is not None
        assert stats.tokens == rows.size // N
        assert_close(stats.second_moment, moment, reduction=stats.tokens)


def test_a_weight_with_two_inputs_gets_the_rows_of_both() -> None:
    model = graph(
        f"""g (float[b,{N}] x, float[c,{N}] z) => (float[b,48] y, float[c,48] u)
            {{ y = MatMul(x, w)  u = MatMul(z, w) }}""",
        w=normal(N, 48),
    )
    feed = _feed(model)
    moment, _ = expected(np.concatenate([feed["x"], feed["z"]]))
    _, stats = one_site(model, "w")
    assert stats is not None
    assert stats.tokens == 6
    assert_close(stats.second_moment, moment, reduction=6)


def test_a_table_that_is_only_gathered_from_has_no_statistic() -> None:
    model = graph(
        f"""g (int64[b] i, float[b,{N}] x) => (float[b,{N}] y, float[b,60] u) {{
            y = Gather(table, i)  head = Transpose<perm=[1, 0]>(tied)
            u0 = Gather(tied, i)  s = Add(u0, x)  u = MatMul(s, head)
        }}""",
        table=normal(60, N),
        tied=normal(60, N, seed=1),
    )
    found = everything(model, read_samples([(np.array([1, 59]), normal(2, N))], model))
    groups = list(calibrate(model, find_sites(model)[0], samples_of_two(model)))
    assert sorted(site.name for group, _ in groups for site in group) == ["table", "tied"]
    assert list(found) == ["tied"]
    assert found["tied"].tokens == 2


def samples_of_two(model: ir.Model) -> Samples:
    return read_samples([(np.array([1, 59]), normal(2, N))], model)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_half_precision_is_measured_in_single(dtype: ir.DataType) -> None:
    weight = ir.tensor(normal(N, 48).astype(dtype.numpy()), name="w")
    model = graph(
        f"""g (float[b,{N}] x) => (float[b,48] y) {{
            h = Cast<to={int(dtype)}>(x)  m = MatMul(h, w)  y = Cast<to=1>(m) }}""",
        opset=22,
        w=weight,
    )
    assert model.graph[0].outputs[0].dtype == dtype
    _, stats = one_site(model, "w")
    assert stats is not None
    moment, _ = expected(_feed(model)["x"].astype(dtype.numpy()).astype(np.float32))
    assert_close(stats.second_moment, moment, reduction=3)


def test_nothing_but_numbers_is_refused_with_value_and_site() -> None:
    model = chain(k=np.full((N, N), np.inf, np.float32))
    with pytest.raises(CalibrationError, match=r"o: its input 's' is not finite in .*sample 0"):
        everything(model, samples_of(model, 3))
    huge = chain()
    data = [(np.full((1, 2, N), 1e30, np.float32),)]
    with pytest.raises(CalibrationError, match=r"q: its input 'x' is not finite once squared"):
        everything(huge, read_samples(data, huge))


def test_what_is_measured_together_does_not_depend_on_what_is_wanted(tmp_path: Path) -> None:
    model, cache = chain(), Cache(tmp_path)
    samples, sites = samples_of(model, 3), find_sites(model)[0]
    every = everything(model, samples, cache=cache, memory_limit_bytes=1)
    stored = len(cache.entries())
    told: list[tuple[int, int, str]] = []

    def progress(*step: Any) -> None:
        told.append(step)

    groups = calibrate(
        model, sites, samples, wanted={"k", "down"}, memory_limit_bytes=1, cache=cache,
        progress=progress,
    )  # fmt: skip
    found = [([site.name for site in group], stats) for group, stats in groups]
    assert [names for names, _ in found] == [["k"], ["down"]]
    for (name,), stats in found:
        assert list(stats) == [name]
        assert np.array_equal(stats[name].second_moment, every[name].second_moment)
    assert len(cache.entries()) == stored
    assert told == []
    one = calibrate(
        model, sites, samples, wanted={"o"}, memory_limit_bytes=1, progress=progress
    )  # fmt: skip
    assert [[site.name for site in group] for group, _ in one] == [["o"]]
    assert told == [(1, 1, "calibrate")], "groups that nobody wants are not run"


@pytest.mark.parametrize("cached", [False, True])
def test_a_site_that_is_not_wanted_may_have_no_statistic(tmp_path: Path, cached: bool) -> None:
    model = chain(k=np.full((N, N), np.inf, np.float32))
    cache, samples = Cache(tmp_path), samples_of(model, 3, 4)
    sites = find_sites(model)[0]
    refused: dict[str, str] = {}

    def run(**options: Any) -> list[str]:
        groups = calibrate(model, sites, samples, cache=cache, **options)
        return [site.name for group, stats in groups for site in group if site.name in stats]

    if cached:
        run(wanted={"q"})
    assert run(wanted={"q", "k", "v"}) == ["q", "k", "v"]
    found = run(refuse=lambda site, cause: refused.update({site.name: cause}))
    assert found == ["q", "k", "v"]
    assert refused == {
        name: f"its input {value!r} is not finite in calibration sample 0; mend the model or the "
        "data"
        for name, value in (("o", "s"), ("down", "r"))
    }
    with pytest.raises(CalibrationError, match=r"^o: its input 's' .*, or keep the site dense$"):
        run(wanted={"o"})


def test_an_input_of_unknown_rank_is_refused_where_it_is_wanted() -> None:
    model = graph(
        "g (float[a,b] x) => (float[c,d] y) { s = Relu(x)  y = Gemm<transA=1>(s, w) }",
        w=normal(N, 48),
    )
    (site,) = find_sites(model)[0]
    site.uses[0].x.shape = None
    assert site.uses[0].feature_axis == 0
    samples = read_samples([(normal(N, 3),)], model)
    assert list(calibrate(model, [site], samples, wanted=())) == []
    with pytest.raises(CalibrationError, match=r"^w: the rank of its input 's' is not known"):
        list(calibrate(model, [site], samples))


def test_samples_that_are_missing_empty_or_cannot_be_run() -> None:
    model = chain()
    with pytest.raises(CalibrationError, match="at least one sample"):
        everything(model, Samples(()))
    with pytest.raises(CalibrationError, match=r"q: no sample brings a row to its input 'x'"):
        everything(model, read_samples([(np.empty((1, 0, N), np.float32),)], model))
    wrong = Samples(({"x": normal(2, 3, N)}, {"x": normal(2, 3, N + 1)}))
    with pytest.raises(CalibrationError, match=r"calibration sample 1 cannot be run: \S+"):
        everything(model, wrong)


def test_weights_in_memory_are_handed_over_through_a_file_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("undense.frontend.dense._IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = chain()
    samples = samples_of(model, 3)
    kept = [value.const_value for value in model.graph.initializers.values()]
    stored = everything(model, samples)
    with dense_session(model) as run:
        inside = run(samples.items[0])["y"]
        assert [path.name for path in tmp_path.rglob("*.data")] == ["weights.data"]
    assert list(tmp_path.iterdir()) == []
    assert [value.const_value for value in model.graph.initializers.values()] == kept
    monkeypatch.undo()
    assert np.array_equal(inside, run_dense(model, samples)[0]["y"])
    for name, stats in everything(model, samples).items():
        assert np.array_equal(stats.second_moment, stored[name].second_moment)


def test_a_model_that_onnx_runtime_refuses_says_why() -> None:
    model = graph(f"g (float[b,{N}] x) => (float[b,{N}] y) {{ y = foreign.Op(x) }}")
    model.opset_imports["foreign"] = 1
    with (
        pytest.raises(LoadError, match=r"ONNX Runtime cannot run the model: .*foreign"),
        dense_session(model),
    ):
        pass
