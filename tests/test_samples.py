from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import graph, normal
from undense.frontend.bounds import dim_size, dimension_bounds, index_bounds
from undense.frontend.samples import Samples, read_samples, synthetic_sample
from undense.passes.errors import CalibrationError

TABLE = normal(9, 4)
IDS = np.array([[1, 2, 3]])
X = np.ones((1, 3, 4), np.float32)


def model(inputs: str = "int64[b,t] ids, float[b,t,4] x") -> ir.Model:
    found = graph(
        f"g ({inputs}) => (float[b,t,4] y) {{ e = Gather(w, ids)  y = Add(e, x) }}", w=TABLE
    )
    found.metadata_props["undense.dim_bounds"] = '{"t": [2, 5], "b": [1, null]}'
    return found


def single() -> ir.Model:
    return graph("g (float[b,4] x) => (float[b,4] y) { y = Relu(x) }")


def test_every_form_of_a_sample_gives_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", ids=IDS, x=X)
    np.savez(tmp_path / "many.npz", **{"0/ids": IDS, "0/x": X})
    forms: list[Any] = [
        [{"ids": IDS, "x": X}],
        {"ids": IDS, "x": X},
        [(IDS, X)],
        iter([[torch.from_numpy(IDS), torch.from_numpy(X).requires_grad_()]]),
        [{"ids": IDS.astype(np.int32), "x": X.astype(np.float64)}],
        [{"ids": IDS.tolist(), "x": X.tolist()}],
        [(torch.from_numpy(IDS), torch.from_numpy(X).bfloat16())],
        tmp_path / "one.npz",
        str(tmp_path / "many.npz"),
    ]
    expected = Samples(({"ids": IDS, "x": X},)).sha256
    for form in forms:
        samples = read_samples(form, model())
        assert samples.sha256 == expected
        (item,) = samples
        assert item["ids"].dtype == np.int64
        assert item["x"].dtype == np.float32


def test_one_array_is_a_sample_or_a_stack_of_them() -> None:
    x = normal(3, 2, 4)
    assert len(read_samples(x[0], single())) == 1
    assert len(read_samples(x, single())) == 3
    assert len(read_samples(torch.from_numpy(x), single())) == 3
    assert len(read_samples([x[0], torch.from_numpy(x[1])], single())) == 2


def test_nested_samples_follow_the_names_of_torch_export() -> None:
    nested = graph(
        "g (float[n] past_0, float[n] past_1_key, float[n] x) => (float[n] y)"
        " { s = Add(past_0, past_1_key)  y = Add(s, x) }"
    )
    a, b, c = np.float32([1]), np.float32([2]), np.float32([3])
    by_name = read_samples([{"past": [a, {"key": b}], "x": c}], nested)
    by_place = read_samples([([a, {"key": b}], c)], nested)
    assert by_name.sha256 == by_place.sha256
    assert by_name.items[0]["past_1_key"] == 2


def test_samples_are_copies() -> None:
    x = np.ones((2, 4), np.float32)
    samples = read_samples([x], single())
    x[:] = 5
    assert (samples.items[0]["x"] == 1).all()


def test_the_hash_depends_on_everything() -> None:
    a, b = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    variants = [
        ({"x": a},),
        ({"x": b},),
        ({"z": a},),
        ({"x": a.reshape(4, 2)},),
        ({"x": a.view(np.int32)},),
        ({"x": a}, {"x": b}),
        ({"x": b}, {"x": a}),
    ]
    assert len({Samples(items).sha256 for items in variants}) == len(variants)


def test_samples_are_held_out_when_there_are_enough() -> None:
    samples = Samples(tuple({"x": np.full(1, i)} for i in range(8)))
    rest, kept = samples.held_out(2, 512)
    assert [int(item["x"][0]) for item in (*rest, *kept)] == list(range(8))
    assert len(kept) == 2
    rest, kept = Samples(samples.items[:7]).held_out(2, 512)
    assert (len(rest), len(kept)) == (7, 2)
    rest, kept = Samples(samples.items[:1]).held_out(2, 512)
    assert (len(rest), len(kept)) == (1, 1)


def test_no_more_are_held_out_than_are_wanted_and_no_more_than_a_quarter() -> None:
    samples = Samples(tuple({"x": np.ones((10, 4))} for _ in range(40)))
    assert [len(part) for part in samples.held_out(2, 512)] == [30, 10]
    assert [len(part) for part in samples.held_out(2, 35)] == [36, 4]
    assert [len(part) for part in samples.held_out(2, 5)] == [38, 2]


def test_tokens_are_ids_or_rows_of_the_batch() -> None:
    assert read_samples([(IDS, X)] * 2, model()).tokens == 6
    assert read_samples(normal(3, 2, 4), single()).tokens == 6


REFUSED: dict[str, tuple[Any, str]] = {
    "missing": ([{"ids": IDS}], "sample 0 lacks 'x'; the inputs are ids, x"),
    "unknown": ([{"ids": IDS, "x": X, "label": 1}], "sample 0 has an unknown 'label'"),
    "second": ([(IDS, X), (IDS,)], "sample 1 has 1 arrays and the model 2 inputs"),
    "rank": ([(IDS[0], X)], r"input 'ids' has shape \[3\]; the model wants \[b, t\]"),
    "fixed": ([(IDS, X[..., :3])], r"input 'x' has shape .*; the model wants \[b, t, 4\]"),
    "symbol": ([(IDS, X[:, :2])], "input 'x' .* t is 3 elsewhere"),
    "short": ([(IDS[:, :1], X[:, :1])], "input 'ids' .* t goes from 2 to 5"),
    "kind": ([(IDS.astype(np.float32), X)], "input 'ids' is float32 and the model wants int64"),
    "lossy": ([(IDS.astype(np.uint64) + 2**63, X)], "input 'ids' is uint64"),
    "text": ([(np.array([["a"]]), X)], "input 'ids' holds <U1, which is no number"),
    "ragged": ([{"ids": [[1, 2], [3]], "x": X}], "input 'ids' is ragged"),
    "high": ([(IDS + 6, X)], "input 'ids' holds 9; indices go from 0 to 8"),
    "low": ([(IDS - 2, X)], "input 'ids' holds -1; indices go from 0 to 8"),
    "none": ([], "no samples"),
    "number": (3, "calibration data is a int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_sample_that_does_not_fit_is_named(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(CalibrationError, match=message):
        read_samples(data, model())


def test_npz_files_that_are_none(tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(CalibrationError, match=f"{name}.*{message}"):
            read_samples(tmp_path / name, model())

    refused("none.npz", "no such file")
    (tmp_path / "text.npz").write_text("nothing")
    refused("text.npz", "not an .npz")
    np.save(tmp_path / "array.npy", IDS)
    refused("array.npy", "not an .npz")
    np.savez(tmp_path / "object.npz", ids=np.array([None]))
    refused("object.npz", "plain arrays")
    np.savez(tmp_path / "mixed.npz", **{"ids": IDS, "0/ids": IDS})
    refused("mixed.npz", "mixes keys")
    np.savez(tmp_path / "whole.npz", ids=IDS, x=X)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused("cut.npz", "damaged")


def test_many_samples_of_an_npz_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    arrays = {f"{i}/x": np.full((i + 1, 4), i, np.float32) for i in (10, 2, 0)}
    np.savez(tmp_path / "many.npz", **arrays)
    samples = read_samples(tmp_path / "many.npz", single())
    assert [item["x"].shape[0] for item in samples] == [1, 3, 11]


def test_an_input_whose_name_looks_numbered(tmp_path: Path) -> None:
    odd = single()
    odd.graph.inputs[0].name = "0/x"
    np.savez(tmp_path / "one.npz", **{"0/x": np.ones((1, 4), np.float32)})
    assert list(read_samples(tmp_path / "one.npz", odd).items[0]) == ["0/x"]


def test_indices_are_bounded_by_the_shortest_table_they_reach() -> None:
    found = graph(
        """g (int32[n] ids, int64[n] free, int64[n] both, float[n,4] x, int64[n] late)
            => (float[m,k,4] y, float[n,4] z, float[n,q] u, float[n,4] v, int64[n] o) {
            a = Cast<to=7>(ids)  axes = Constant<value_ints=[1]>()  c = Unsqueeze(a, axes)
            y = Gather(w, c)  z = Gather<axis=0>(x, free)
            first = Gather(w, both)  t = Transpose<perm=[1, 0]>(short)  second = Gather(t, both)
            u = Concat<axis=1>(first, second)
            two = Constant<value_ints=[2]>()  shifted = Add(late, two)  v = Gather(w, shifted)
            o = Identity(free)
        }""",
        w=TABLE,
        short=normal(4, 5),
    )
    assert index_bounds(found) == {"ids": (0, 8), "both": (0, 4)}


def test_a_made_up_sample_is_valid() -> None:
    found = model()
    sample = synthetic_sample(found, seed=3)
    assert sample["ids"].shape == (2, 5)
    assert sample["x"].shape == (2, 5, 4)
    assert (
        read_samples([sample], found).sha256
        == read_samples([synthetic_sample(found, seed=3)], found).sha256
    )
    assert not np.array_equal(sample["x"], synthetic_sample(found, seed=4)["x"])


def test_a_made_up_sample_honours_masks_symbols_and_expressions() -> None:
    found = graph(
        """g (float[b,s,4] x, float[b,past,4] cache, bool[b,m] mask, int64[b,s] position,
              int64 step) => (float[b,s,4] y) { y = Relu(x) }"""
    )
    found.graph.inputs[2].shape = ir.Shape(["b", "past + s"])
    sample = synthetic_sample(found)
    (batch, length, _), (_, past, _) = sample["x"].shape, sample["cache"].shape
    assert batch == 2
    assert len({batch, length, past}) == 3
    assert sample["mask"].shape == (batch, past + length)
    assert sample["mask"].all()
    assert (sample["position"] == 1).all()
    assert sample["step"].shape == ()


def test_no_sample_is_made_up_of_text() -> None:
    found = graph("g (string[n] words) => (string[n] y) { y = Identity(words) }")
    with pytest.raises(CalibrationError, match="input 'words' is STRING"):
        synthetic_sample(found)


def test_dimensions_are_computed_from_their_symbols() -> None:
    sizes = {"past": 3, "s": 4}
    assert dim_size(7, sizes) == 7
    assert dim_size(ir.SymbolicDim("s"), sizes) == 4
    assert dim_size(ir.SymbolicDim("past + 2*s"), sizes) == 11
    assert dim_size(ir.SymbolicDim("past + other"), sizes) is None
    assert dim_size(ir.SymbolicDim("unk__0/x:1"), sizes) is None
    assert dim_size(ir.SymbolicDim(None), sizes) is None
    low, high = dimension_bounds(model())["b"]
    assert low == 1
    assert high >= 2**31


def test_data_that_its_reader_cannot_read_is_not_blamed_on_what_is_written() -> None:
    def data() -> Iterator[Any]:
        yield normal(2, 4)
        raise FileNotFoundError(2, "No such file or directory", "more.npy")

    with pytest.raises(CalibrationError, match=r"calibration data cannot be read: .*more\.npy"):
        read_samples(data(), single())
