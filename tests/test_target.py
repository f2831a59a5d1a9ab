from __future__ import annotations

import sys

import pytest
from undense.backend.target import Target
from undense.passes.errors import MissingDependencyError, TargetError


@pytest.mark.parametrize(
    ("text", "engine", "mcpu"),
    [("llvm", "tvm", None), ("llvm -mcpu=x86-64-v3", "tvm", "x86-64-v3"), ("ort-cpu", "ort", None)],
)
def test_parse_and_print(text: str, engine: str, mcpu: str | None):
    target = Target.parse(text)
    assert (target.engine, target.mcpu, str(target)) == (engine, mcpu, text)


@pytest.mark.parametrize("text", ["cuda", "cuda -arch=sm_90", "ort-cuda"])
def test_planned_targets_say_so_in_one_sentence(text: str):
    with pytest.raises(TargetError, match=r"^target '[^']+' is not there yet; [^.\n]+$"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["", "vulkan", "llvm-mcpu=x"])
def test_unknown_targets_list_the_known_ones(text: str):
    with pytest.raises(TargetError, match="known are llvm, llvm -mcpu=NAME, ort-cpu"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["llvm -march=x", "llvm -mcpu=", "llvm -mcpu", "ort-cpu -fast"])
def test_unknown_options_are_named(text: str):
    with pytest.raises(TargetError, match=r"ort-cpu takes no options|llvm takes -mcpu=NAME"):
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
