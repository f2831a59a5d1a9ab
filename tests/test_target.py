from __future__ import annotations

import re
import sys

import pytest
from undense.backend.target import ARCHITECTURES, Target
from undense.passes.errors import MissingDependencyError, TargetError


@pytest.mark.parametrize(
    ("text", "engine", "device", "mcpu", "architectures"),
    [
        ("llvm", "tvm", "cpu", None, ()),
        ("llvm -mcpu=x86-64-v3", "tvm", "cpu", "x86-64-v3", ()),
        ("cuda -arch=sm_90", "tvm", "cuda", None, ("sm_90",)),
        ("cuda -arch=sm_80,sm_90,sm_90a", "tvm", "cuda", None, ("sm_80", "sm_90", "sm_90a")),
        ("cuda -arch=sm_80,sm_90 -libs=cublas", "tvm", "cuda", None, ("sm_80", "sm_90")),
        ("ort-cpu", "ort", "cpu", None, ()),
        ("ort-cuda", "ort", "cuda", None, ()),
    ],
)
def test_parse_and_print(
    text: str, engine: str, device: str, mcpu: str | None, architectures: tuple[str, ...]
):
    target = Target.parse(text)
    found = (target.engine, target.device, target.mcpu, target.architectures, str(target))
    assert found == (engine, device, mcpu, architectures, text)


def test_cuda_alone_is_for_every_architecture_in_use():
    assert Target.parse("cuda").architectures == ARCHITECTURES


def test_libraries_are_called_where_they_are_asked_for():
    assert Target.parse("cuda").libraries == ()
    target = Target.parse("cuda -libs=cublas -arch=sm_90")
    assert target.libraries == ("cublas",)
    assert str(target) == "cuda -arch=sm_90 -libs=cublas"
    assert list(target.tvm().attrs["libs"]) == ["cublas"]
    assert "libs" not in Target.parse("cuda").tvm().attrs


def test_architectures_are_put_in_order_once():
    assert Target.parse("cuda -arch=sm_90,sm_80,sm_90").architectures == ("sm_80", "sm_90")


@pytest.mark.parametrize("text", ["", "vulkan", "llvm-mcpu=x"])
def test_unknown_targets_list_the_known_ones(text: str):
    with pytest.raises(TargetError, match=r"known are llvm, llvm -mcpu=NAME, cuda, .*ort-cuda$"):
        Target.parse(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("llvm -march=x", "llvm takes -mcpu=NAME"),
        ("llvm -mcpu=", "llvm takes -mcpu=NAME"),
        ("llvm -mcpu", "llvm takes -mcpu=NAME"),
        ("ort-cpu -fast", "ort-cpu takes no options"),
        ("ort-cuda -arch=sm_90", "ort-cuda takes no options"),
        ("cuda -mcpu=x", "cuda takes -arch=sm_NN,... and -libs=cublas"),
        ("cuda -libs=", "cuda takes -arch=sm_NN,... and -libs=cublas"),
        ("cuda -libs=cublas,cudnn", "library 'cudnn' is not known; there is cublas"),
        ("llvm -libs=cublas", "llvm takes -mcpu=NAME"),
        ("cuda -arch=90", "'90' is no architecture; write sm_80"),
        ("cuda -arch=sm_80,", "'' is no architecture"),
        ("cuda -arch=sm_75", "need sm_80 or later, which sm_75 is not; choose target ort-cuda"),
    ],
)
def test_unknown_options_are_named(text: str, named: str):
    with pytest.raises(TargetError, match=re.escape(named)):
        Target.parse(text)


def test_the_cpu_is_this_machines_unless_named():
    from tvm.target.codegen import llvm_get_system_cpu

    assert str(Target.parse("llvm").tvm().attrs["mcpu"]) == llvm_get_system_cpu()
    assert str(Target.parse("llvm -mcpu=x86-64-v3").tvm().attrs["mcpu"]) == "x86-64-v3"


def test_an_unknown_cpu_is_refused():
    with pytest.raises(TargetError, match="does not know the CPU 'abacus'"):
        Target.parse("llvm -mcpu=abacus").tvm()


def test_features_follow_the_cpu():
    assert set(Target.parse("llvm -mcpu=x86-64-v3").cpu_features()) == {"avx2", "fma", "f16c"}
    assert Target.parse("llvm -mcpu=x86-64").cpu_features() == ()


def test_missing_tvm_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tvm.target.codegen", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'undense\[cpu\]'"):
        Target.parse("llvm").tvm()
