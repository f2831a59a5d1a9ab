"""Bound memory gives the results of plain calls: here that of the CPU, by the code for GPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from artifacts import IN_FEATURES, expected, make_artifact, sample
from graphs import graph
from helpers import assert_close
from undense.runtime.ort_binding import run_bound, to_torch_without_copy

NAMES = ("sum", "relu")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    artifact = make_artifact(tmp_path_factory.mktemp("binding") / "tiny.undense")
    return onnxruntime.InferenceSession(
        str(artifact.file("model.onnx")), providers=["CPUExecutionProvider"]
    )


def assert_right(results: list[Any], inputs: dict[str, np.ndarray]) -> None:
    for got, want in zip(results, expected(**inputs), strict=True):
        assert_close(got, want, reduction=IN_FEATURES + 1)


@pytest.mark.parametrize("length", [0, 1, 16])
def test_arrays_and_tensors_are_bound_alike(session: Any, length: int) -> None:
    inputs = sample(length)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    for given in (inputs, tensors, {"x": tensors["x"], "ids": inputs["ids"]}):
        results = run_bound(session, given, NAMES, "cpu")
        assert_right([result.numpy() for result in results], inputs)
        assert_right([to_torch_without_copy(result).numpy() for result in results], inputs)


def test_any_memory_layout(session: Any) -> None:
    inputs = sample()
    for x in (
        np.asfortranarray(inputs["x"]),
        torch.from_numpy(np.asfortranarray(inputs["x"])),
        torch.from_numpy(inputs["x"]).requires_grad_(),
        torch.from_numpy(np.repeat(inputs["x"], 2, axis=1))[:, ::2],
    ):
        results = run_bound(session, {"x": x, "ids": inputs["ids"]}, NAMES, "cpu")
        assert_right([result.numpy() for result in results], inputs)


def test_inputs_are_read_where_they_are(session: Any) -> None:
    x = torch.zeros(3, IN_FEATURES)
    binding = _Recorder(session)
    run_bound(binding, {"x": x, "ids": np.zeros(3, np.int64)}, NAMES, "cpu")
    assert binding.addresses == {"x": x.data_ptr()}


class _Recorder:
    """A session that notes the addresses that are bound to its inputs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.addresses: dict[str, int] = {}

    def io_binding(self) -> Any:
        binding = self._session.io_binding()
        bind = binding.bind_input

        def noted(name: str, *arguments: Any) -> None:
            self.addresses[name] = arguments[-1]
            bind(name, *arguments)

        binding.bind_input = noted
        return binding

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)


def test_results_are_the_callers(session: Any) -> None:
    inputs = sample()
    kept = [to_torch_without_copy(result) for result in run_bound(session, inputs, NAMES, "cpu")]
    kept[1].add_(1)
    again = run_bound(session, inputs, NAMES, "cpu")
    assert_right([kept[0].numpy(), kept[1].numpy() - 1], inputs)
    assert_right([result.numpy() for result in again], inputs)


@pytest.mark.parametrize("given", [torch.bool, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("wanted", [torch.bool, torch.bfloat16, torch.float16, torch.int64])
def test_types_of_torch_go_in_and_come_out(given: torch.dtype, wanted: torch.dtype) -> None:
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in (given, wanted)}
    number = ir.DataType[names[wanted].upper()].value
    text = f"g ({names[given]}[n] x) => ({names[wanted]}[n] y) {{ y = Cast<to={number}>(x) }}"
    session = onnxruntime.InferenceSession(
        ir.to_proto(graph(text)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = torch.tensor([0, 1, 1, 0]).to(given)
    (result,) = run_bound(session, {"x": x}, ["y"], "cpu")
    found = to_torch_without_copy(result)
    assert found.dtype == wanted
    assert found.tolist() == x.to(wanted).tolist()
