"""`verify` judges the execution error alone, and reports the approximation error beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import undense
from artifacts import OUTPUTS, expected, make_artifact, manifest, sample
from undense.passes.errors import ArtifactError, InputError
from undense.runtime.artifact import Tolerance, write_artifact
from undense.runtime.verify import stored_inputs, verify, write_expectations


def dense_outputs(inputs, factor=1.25):
    pairs = zip(OUTPUTS, expected(**inputs), strict=True)
    return {info.name: (factor * value).astype(np.float32) for info, value in pairs}


@pytest.mark.parametrize("engine", ["tvm", "ort"])
def test_a_sound_artifact_holds(tmp_path, engine):
    made = make_artifact(tmp_path / "a", engine)
    found = verify(made.path)
    assert found.holds
    assert found.engine == engine
    assert found.samples == 2
    assert 0 < found.execution_error < 1e-6
    # the stored dense outputs are 1.25 times the reference: |1 - 1.25| / 1.25
    assert found.approximation_error == pytest.approx(0.2, rel=1e-6)
    assert set(found.outputs) == {"sum", "relu"}
    assert found.fresh_error is None


def test_stored_inputs(tmp_path):
    stored = stored_inputs(make_artifact(tmp_path / "a"))
    assert len(stored) == 2
    for index, held in enumerate(stored):
        want = sample(3 + index, index)
        assert set(held) == set(want)
        assert all(np.array_equal(held[name], want[name]) for name in want)


def test_json(tmp_path):
    document = json.loads(json.dumps(verify(make_artifact(tmp_path / "a").path).to_json()))
    assert document["holds"] is True
    assert document["execution_error"] == document["outputs"]["sum"]["execution_error"] or (
        document["execution_error"] == document["outputs"]["relu"]["execution_error"]
    )
    assert document["approximation_error"] == pytest.approx(0.2, rel=1e-6)
    assert document["outputs"]["sum"]["tolerance"] == 1e-5
    assert "fresh_approximation_error" not in document


def test_an_execution_error_beyond_its_tolerance_does_not_hold(tmp_path):
    tight = {"sum": Tolerance(1e-5, ""), "relu": Tolerance(1e-12, "")}
    found = verify(make_artifact(tmp_path / "a", execution_tolerance=tight).path)
    assert not found.holds
    assert found.outputs["sum"].holds
    assert not found.outputs["relu"].holds
    assert found.to_json()["holds"] is False


def test_an_engine_that_computes_something_else_does_not_hold(tmp_path):
    wrong = make_artifact(tmp_path / "a", "tvm").path

    class Broken(type(undense.load(wrong))):
        def _execute(self, arrays):
            return [np.full_like(value, np.nan) for value in super()._execute(arrays)]

    found = verify(Broken(undense.load(wrong).artifact, 1))
    assert not found.holds
    assert found.execution_error == float("inf")
    assert found.to_json()["execution_error"] is None
    assert found.approximation_error == pytest.approx(0.2, rel=1e-6)


def test_fresh_samples(tmp_path):
    path = make_artifact(tmp_path / "a").path
    fresh = [(sample(4, seed), dense_outputs(sample(4, seed), 1 / 1.5)) for seed in (5, 6)]
    found = verify(path, fresh)
    assert found.holds
    assert found.fresh_error == pytest.approx(0.5, rel=1e-6)
    assert found.to_json()["fresh_approximation_error"] == found.fresh_error
    with pytest.raises(InputError, match="x: expected dtype float32"):
        verify(path, [({**sample(), "x": np.ones((3, 8))}, {})])
    with pytest.raises(InputError, match="other: no such output to compare"):
        verify(path, [(sample(), {"other": np.ones(3)})])


def test_an_artifact_without_what_verify_needs(tmp_path):
    no_tolerance = make_artifact(tmp_path / "a", execution_tolerance={}).path
    with pytest.raises(ArtifactError, match="no execution tolerance for output sum"):
        verify(no_tolerance)

    source = make_artifact(tmp_path / "b").path

    def refill(inputs, dense, references):
        def fill(folder):
            (folder / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
            write_expectations(folder, inputs, dense, references)
            return manifest("ort")

        return write_artifact(tmp_path / "c", fill).path

    one, outputs = [sample()], dense_outputs(sample())
    with pytest.raises(ArtifactError, match="no stored samples"):
        verify(refill([], [], []))
    with pytest.raises(ArtifactError, match="no stored output relu of sample 0"):
        verify(refill(one, [outputs], [{"sum": outputs["sum"]}]))
    with pytest.raises(ArtifactError, match="no stored output sum of sample 0"):
        verify(refill(one, [{}], [outputs]))
