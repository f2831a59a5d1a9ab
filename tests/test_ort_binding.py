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
from undense.passes.errors import InputError
from undense.runtime.gpu_tensors import element_type, is_on_gpu, stand_in
from undense.runtime.manifest import TensorInfo
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


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float32, torch.int64, torch.uint8, torch.bool]
)
def test_element_types(dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, dtype=dtype)
    assert element_type(tensor) == tensor.numpy().dtype


class _OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, and what of it is copied to the host."""

    number = 0
    copies = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.number)

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        _OnGpu.copies += 1
        return self.as_subclass(torch.Tensor)


def test_a_tensor_on_a_gpu_is_checked_without_a_copy() -> None:
    info = TensorInfo("x", "float32", ("n", 4))
    tensor = torch.ones(10**6, 4).as_subclass(_OnGpu)
    assert is_on_gpu(tensor)
    before = _OnGpu.copies
    found = stand_in(info, tensor)
    assert _OnGpu.copies == before
    assert (found.shape, found.dtype, found.strides) == ((10**6, 4), np.float32, (0, 0))


def test_indices_on_a_gpu_have_their_values_checked() -> None:
    info = TensorInfo("ids", "int64", ("n",), bounds=(0, 9))
    found = stand_in(info, torch.tensor([3, 10]).as_subclass(_OnGpu))
    assert not is_on_gpu(found)
    assert found.tolist() == [3, 10]


def test_what_is_not_on_a_gpu_stands_for_itself() -> None:
    info = TensorInfo("x", "float32", ("n", 4))
    for value in (np.ones((2, 4), np.float32), torch.ones(2, 4), [[1.0]]):
        assert stand_in(info, value) is value


def test_other_gpus_are_refused() -> None:
    tensor = torch.ones(2, 4).as_subclass(_OnGpu)
    tensor.number = 1  # type: ignore[misc]
    with pytest.raises(InputError, match=r"x: is on cuda:1, the module runs on cuda:0"):
        stand_in(TensorInfo("x", "float32", ("n", 4)), tensor)


def test_types_that_numpy_lacks_are_refused() -> None:
    tensor = torch.empty(2, dtype=torch.bits8).as_subclass(_OnGpu)
    with pytest.raises(InputError, match=r"x: torch\.bits8 has no numpy form"):
        stand_in(TensorInfo("x", "float32", ("n",)), tensor)
