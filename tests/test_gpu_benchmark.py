"""The benchmark for GPU hosts: its cases compute what they say, on the emulated GPU."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from cuda_emulation import emulated
from undense.backend.cuda.module import device_code_by
from undense.backend.cuda.nvcc import DEVICE_HEADERS
from undense.backend.kernels.cuda.dtypes import activation
from undense.backend.kernels.cuda.weights import Coded, Dense
from undense.backend.target import Target

from benchmarks.gpu import cases, decode, other_kernels, products
from benchmarks.gpu.runner import run
from benchmarks.gpu.runner.baselines import LINEAR, Options
from benchmarks.gpu.runner.decode import DecodeStep
from benchmarks.gpu.runner.engine import Engine
from benchmarks.gpu.runner.floor import floor_of, work_of
from benchmarks.gpu.runner.machine import Peaks
from benchmarks.gpu.runner.measure import copies_beyond, input_sets, measured, worst_error
from benchmarks.gpu.runner.random_data import random_weight
from benchmarks.gpu.runner.reference import reference, tolerance
from benchmarks.gpu.runner.results import Results
from benchmarks.gpu.runner.spec import Case, Tensor, Weight
from benchmarks.gpu.runner.timing import Clock, Subject, interleaved
from benchmarks.gpu.runner.unpack import unpacked

TARGET = Target.parse("cuda -arch=sm_90")
CACHE = 1 << 14
PEAKS = Peaks(3e12, {"float16": 8e14, "bfloat16": 8e14}, CACHE)


class HostEngine(Engine):
    """The engine on the emulated GPU, whose memory torch does not know: tensors are copied."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "cpu")
        self.copies: dict[int, tuple[torch.Tensor, Any]] = {}

    def start(self) -> None:
        raise AssertionError("the whole TVM is there already")

    def stream(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _given(self, tensor: torch.Tensor) -> Any:
        import tvm

        if id(tensor) not in self.copies:
            copy = tvm.runtime.tensor(to_numpy(tensor), tvm.cuda(0))
            self.copies[id(tensor)] = tensor, copy
        return self.copies[id(tensor)][1]

    def _taken(self, tensor: Any) -> torch.Tensor:
        array = tensor.numpy()
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def _filled(self, tensor: torch.Tensor, given: Any) -> torch.Tensor:
        return self._taken(given)


class HostClock(Clock):
    """The host's clock, and no graphs."""

    def prepared(self, subject: Subject) -> tuple[Callable[[], object], int, str]:
        return lambda: [call() for call in subject.runs], len(subject.runs), "one by one"

    def seconds(self, sample: Callable[[], object]) -> float:
        start = time.perf_counter()
        sample()
        return time.perf_counter() - start


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.contiguous().numpy()


def emulated_code(source: str, architectures: object) -> bytes:
    from cuda_emulation import compile

    return compile(source, [h for h in DEVICE_HEADERS if h.name == "undense.cuh"])


def compiled(folder: Path, make: Callable[[], tuple[Case, Any]], library: str = "case.so") -> Case:
    with emulated(), device_code_by(emulated_code):
        return cases.compile_functions(make, TARGET, folder, library)


def weights_of(case: Case, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        tensor.name: made
        for weight in case.weights
        for tensor, made in zip(weight.tensors, random_weight(weight, generator), strict=True)
    }


def checked(folder: Path, case: Case, sizes: Mapping[str, int]) -> float:
    generator = torch.Generator().manual_seed(0)
    weights = weights_of(case, generator)
    sets = [{**weights, **inputs} for inputs in input_sets(case, sizes, CACHE, generator)]
    engine = HostEngine(folder)
    runs = [engine.bind(case, sets[i], sizes) for i in (0, -1)]
    return worst_error(engine, case, [sets[0], sets[-1]], runs)


def as_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dense_weights_unpack(dtype: str) -> None:
    known = activation(dtype)
    assert known is not None
    matrix = np.random.default_rng(0).standard_normal((3, 37, 75)).astype(dtype)
    weight = products.dense_weight("w", ("w",), known, 3, 37, 75)
    stored = as_torch(Dense(known).pack(matrix))
    assert tuple(stored.shape) == weight.tensors[0].shape
    assert np.array_equal(unpacked(weight, [stored]).numpy(), matrix.astype(np.float64))


@pytest.mark.parametrize(
    ("bits", "offset", "planes"),
    [(2, 1, 1), (2, 1, 2), (3, 4, 1), (4, 4, 1), (5, 13, 1), (8, 128, 1)],
)
def test_codes_unpack(bits: int, offset: int, planes: int) -> None:
    known = activation("float16")
    assert known is not None
    coded = Coded(known, bits, offset, 32, planes)
    rng = np.random.default_rng(bits)
    codes = rng.integers(-offset, 2**bits - offset, (planes, 37, 75)).astype(np.int8)
    sizes = 2.0 ** rng.integers(-9, 9, 37)
    scales = (rng.random((planes, 37, 3)) * sizes[:, None]).astype(np.float32)
    arguments = coded.arguments(1, 37, 75)
    tensors = tuple(Tensor(a.name, a.shape, a.dtype) for a in arguments)
    weight = Weight("w", "coded", tensors, 1, 37, 75, bits, offset, 2**bits, 32, planes)
    stored = [torch.from_numpy(array) for array in coded.pack(codes, scales).values()]
    expected = (codes * np.repeat(scales, 32, -1)[..., :75].astype(np.float64)).sum(0)
    assert np.array_equal(unpacked(weight, stored)[0].numpy(), expected)


@pytest.mark.parametrize(
    ("bits", "offset", "levels"), [(2, 1, 3), (4, 4, 9), (4, 8, 16), (8, 128, 256)]
)
def test_random_words_are_valid_codes(bits: int, offset: int, levels: int) -> None:
    known = activation("float16")
    assert known is not None
    coded = Coded(known, bits, offset, 128)
    tensors = tuple(Tensor(a.name, a.shape, a.dtype) for a in coded.arguments(1, 64, 256))
    weight = Weight("w", "coded", tensors, 1, 64, 256, bits, offset, levels, 128)
    codes, scales, unit = random_weight(weight, torch.Generator().manual_seed(0))
    found = unpacked(weight, [codes, torch.ones_like(scales), torch.ones_like(unit)])
    assert sorted(set(found.flatten().tolist())) == list(range(-offset, levels - offset))
    assert 0.2 < float(unpacked(weight, [codes, scales, unit]).norm(dim=-1).mean()) < 2


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        ("dense", "bfloat16"),
        ("trit_planes{planes=2,tied=false}", "float16"),
        ("int_codes{bits=8,group=128}", "float16"),
        ("low_rank{ratio=0.5}", "float16"),
        ("monarch{ratio=0.5,blocks=2}", "float16"),
    ],
)
def test_products_are_right(tmp_path: Path, cuda_device: Any, scheme: str, dtype: str) -> None:
    case = compiled(tmp_path, lambda: products.product_case(scheme, (96, 128), dtype))
    assert checked(tmp_path, case, {"rows": 3}) < tolerance(case)


def test_products_for_one_architecture_are_compiled_for_it(
    tmp_path: Path, cuda_device: Any
) -> None:
    asked = []

    def code(source: str, architectures: Sequence[str]) -> bytes:
        asked.append((*architectures, "undense_multiply_rows_f16" in source))
        return emulated_code(source, architectures)

    given = ("trit_planes{planes=2}", (96, 128), "float16", (70,), cases.HOPPER)
    with emulated(), device_code_by(code):
        make = partial(products.product_case, *given)
        case = cases.compile_for(cases.HOPPER, make, TARGET, tmp_path, "case.so")
    assert asked == [("sm_90a", True)]
    assert checked(tmp_path, case, {"rows": 70}) < tolerance(case)


def test_a_wrong_product_is_seen(tmp_path: Path, cuda_device: Any) -> None:
    case = compiled(tmp_path, lambda: products.product_case("dense", (64, 64), "float16"))
    generator = torch.Generator().manual_seed(0)
    sets = [
        {**weights_of(case, generator), **inputs}
        for inputs in input_sets(case, {"rows": 1}, CACHE, generator)
    ]
    engine = HostEngine(tmp_path)
    swapped = [engine.bind(case, sets[1], {"rows": 1}), engine.bind(case, sets[0], {"rows": 1})]
    assert worst_error(engine, case, sets[:2], swapped) > 0.1


def test_norm_and_attention_are_right(tmp_path: Path, cuda_device: Any) -> None:
    norm = compiled(tmp_path, lambda: other_kernels.norm_case(96, "float16"))
    assert checked(tmp_path, norm, {"rows": 3}) < tolerance(norm)
    attention = compiled(
        tmp_path,
        lambda: other_kernels.attention_case(4, 2, 64, "float16", 5, (9,), causal=True),
        "attention.so",
    )
    assert checked(tmp_path, attention, attention.sizes[0]) < tolerance(attention)


@pytest.mark.parametrize(
    ("scheme", "head"),
    [("dense", "dense"), ("trit_planes{planes=2}", "int_codes{bits=8,group=128}")],
)
def test_the_decode_step_is_right(tmp_path: Path, cuda_device: Any, scheme: str, head: str) -> None:
    shape = decode.Shape(
        layers=2, hidden=128, inner=192, heads=4, shared=2, size=32, vocabulary=1000
    )
    with emulated(), device_code_by(emulated_code):
        case, code = decode.decode_case(scheme, head, "bfloat16", TARGET, shape, past=5)
        code.executable.export_library(str(tmp_path / "case.so"))
    case = dataclasses.replace(case, library="case.so")
    assert checked(tmp_path, case, case.sizes[0]) < tolerance(case)


def test_the_baseline_of_the_decode_step_is_the_same_model() -> None:
    facts = {
        "layers": 2, "hidden": 32, "inner": 48, "heads": 4, "shared": 2, "size": 8,
        "vocabulary": 50, "epsilon": 1e-5,
    }  # fmt: skip
    model = DecodeStep(facts, 6, torch.float64, torch.device("cpu"))
    tensors = {"token": torch.tensor([[7]]), "cosine": model.cosines[-1], "sine": model.sines[-1]}
    for name, parameter in model.named_parameters():
        parts = name.removesuffix(".weight").split(".")
        short = "layer" + ".".join(parts[1:]) if parts[0] == "layers" else parts[0]
        tensors[short] = torch.nn.init.normal_(parameter.detach())
    weights = tuple(Weight(name, "plain", (Tensor(name, (), "float64"),)) for name in tensors)
    for number, layer in enumerate(model.layers):
        for cache, name in ((layer.keys, "past_key"), (layer.values, "past_value")):
            tensors[f"{name}{number}"] = torch.nn.init.normal_(cache)[:, :, :-1].clone()
    case = Case("", "decode", "", "float32", "", "vm", weights, (), (), "logits", (), facts)
    with torch.no_grad():
        logits = model(torch.tensor([7]), torch.tensor([5]))
    assert torch.allclose(logits, reference(case, tensors), rtol=1e-9)


def test_a_measurement_has_everything(tmp_path: Path, cuda_device: Any) -> None:
    scheme = "trit_planes{planes=2}"
    case = compiled(tmp_path, lambda: products.product_case(scheme, (64, 128), "float16"))
    generator = torch.Generator().manual_seed(0)
    weights = [weights_of(case, generator) for _ in range(2)]
    row = measured(
        HostEngine(tmp_path), case, {"rows": 2}, weights, PEAKS, generator,
        options=Options((), False, lambda size: 2), clock=HostClock,
    )  # fmt: skip
    assert row["correct"]
    assert set(row["times"]) == {"undense", LINEAR}
    assert "torch int4" in row["skipped"]
    assert row["work"]["weight_bytes"] == 64 * 128 // 2 + 64 * (4 + 4)
    ours = row["times"]["undense"]
    assert ours["samples"] == 30
    assert 0 < ours["p10"] <= ours["median"] <= ours["p90"]
    ratio = row["times"][LINEAR]["median"] / ours["median"]
    assert row["times_as_fast_as"] == {LINEAR: pytest.approx(ratio)}
    assert row["of_floor"] == pytest.approx(row["floor"]["median"] / ours["median"])
    json.dumps(row)


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path, cuda_device: Any) -> None:
    case = compiled(tmp_path, lambda: other_kernels.norm_case(64, "float16"))
    good = dataclasses.replace(case, sizes=({"rows": 1}, {"rows": 2}), kind="attention")
    broken = dataclasses.replace(case, name="broken", library="none.so", sizes=({"rows": 1},))
    given = {
        "options": Options((), False, lambda size: 1), "seconds": 60.0, "clock": HostClock,
    }  # fmt: skip

    def go(cases: list[Case], *, lost: bool) -> tuple[bool, dict[str, Any]]:
        results = Results(tmp_path / "results.json", {"head": 1}, resume=True)
        generator = torch.Generator().manual_seed(0)
        finished = run.measure_all(
            HostEngine(tmp_path), cases, PEAKS, results, generator, lost=lambda: lost, **given
        )  # type: ignore[arg-type]
        return finished, json.loads((tmp_path / "results.json").read_text())

    finished, document = go([broken, good], lost=True)
    assert not finished
    assert [entry["case"] for entry in document["failed"]] == ["broken"]
    assert not document["rows"]
    finished, document = go([broken, good], lost=False)
    assert finished
    assert len(document["failed"]) == 1 + len(good.sizes)
    assert "KeyError: 'query'" in document["failed"][-1]["error"]
    given["seconds"] = -1.0
    late = dataclasses.replace(case, name="late")
    _, document = go([broken, late], lost=False)
    assert [entry["case"] for entry in document["left_out"]] == ["late"]


def test_floors_are_counted() -> None:
    with TARGET.tvm():
        dense, _ = products.product_case("dense", (4096, 11008), "float16")
        tied, _ = products.product_case("trit_planes{planes=2}", (4096, 4096), "float16")
        causal, _ = other_kernels.attention_case(32, 8, 64, "float16", 2048, (2048,), causal=True)
    work = work_of(dense, {"rows": 1})
    assert work.weight_bytes == 2 * 4096 * 11008
    assert work.bytes == work.weight_bytes + 2 * (4096 + 11008)
    assert work.operations == 2 * 4096 * 11008
    assert work_of(tied, {"rows": 8}).weight_bytes == 4096 * 4096 // 2 + 4096 * (32 * 4 + 4)
    assert work_of(causal, causal.sizes[0]).operations == 4 * 32 * 64 * 2048 * 2049 // 2
    assert floor_of(work, 1e12, 1e30).bound == "bytes"
    floor = floor_of(work, 1e30, 1e12)
    assert (floor.bound, floor.seconds) == ("operations", work.operations / 1e12)


def test_copies_exceed_twice_the_cache() -> None:
    assert copies_beyond(50 << 20, 8 << 20) == 13
    assert copies_beyond(50 << 20, 1 << 30) == 1
    assert copies_beyond(50 << 20, 0) == 64


def test_subjects_take_turns() -> None:
    order: list[str] = []

    def subject(name: str) -> Subject:
        return Subject([lambda: order.append(name)] * 2)  # type: ignore[list-item]

    found = interleaved({"a": subject("a"), "b": subject("b")}, 3, HostClock)
    assert order == ["a", "a", "b", "b"] * 3
    assert [timed.calls for timed in found.values()] == [2, 2]
