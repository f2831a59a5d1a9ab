"""`Target`: what to compile for, parsed once from text such as `llvm -mcpu=x86-64-v3`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..passes.errors import MissingDependencyError, TargetError
from ..runtime.artifact import Kernels

_KNOWN = ("llvm", "llvm -mcpu=NAME", "ort-cpu")
_CPU_FLAGS = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
}
"""LLVM's names to those of Linux."""

_PLANNED = ("cuda", "ort-cuda")


@dataclass(frozen=True)
class Target:
    """An engine and the machine it runs on.

    Attributes:
        engine: `tvm` or `ort`.
        mcpu: LLVM's name of the CPU to generate code for; None is this machine's.
        kernels: for `ort`, what makes the kernels of structured nodes; None is ONNX Runtime.
    """

    engine: Literal["tvm", "ort"]
    mcpu: str | None = None
    kernels: Kernels | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target that a text names.

        Raises:
            TargetError: an unknown name or option, or one that is not there yet.
        """
        kind, *options = shlex.split(text) or [""]
        if kind in _PLANNED:
            raise TargetError(
                f"target {text!r} is not there yet; compile for llvm or ort-cpu meanwhile"
            )
        if kind not in ("llvm", "ort-cpu"):
            raise TargetError(f"target {text!r} is not known; known are {', '.join(_KNOWN)}")
        if kind == "ort-cpu":
            if options:
                raise TargetError(f"target {text!r}: ort-cpu takes no options")
            return cls("ort")
        return cls("tvm", _mcpu(text, options))

    def with_kernels(self, kernels: str | None) -> Target:
        """The same target with its kernels named.

        Raises:
            TargetError: an unknown name, or a target that compiles all of its kernels anyway.
        """
        if kernels is None:
            return self
        if kernels != "tvm":
            raise TargetError(f"kernels {kernels!r} is not known; there is 'tvm', or none")
        if self.engine != "ort":
            raise TargetError(
                f"kernels is for target ort-cpu; {self} compiles all of its kernels, leave it out"
            )
        return replace(self, kernels="tvm")

    def __str__(self) -> str:
        if self.engine == "ort":
            return "ort-cpu"
        return f"llvm -mcpu={self.mcpu}" if self.mcpu else "llvm"

    def tvm(self) -> Any:
        """The target as TVM takes it, the CPU named in full.

        Raises:
            MissingDependencyError: TVM is not installed.
            TargetError: LLVM does not know the CPU.
        """
        try:
            import tvm.target.codegen as codegen
        except ImportError as error:
            raise MissingDependencyError(
                f"target {self} needs Apache TVM: pip install 'undense[cpu]'"
            ) from error
        from tvm.target import Target as TvmTarget

        mcpu = self.mcpu or str(codegen.llvm_get_system_cpu())
        if not codegen.llvm_is_valid_cpu(mcpu, codegen.llvm_get_system_triple()):
            raise TargetError(
                f"target {self}: LLVM does not know the CPU {mcpu!r}; x86-64-v3 fits most machines"
            )
        return TvmTarget({"kind": "llvm", "mcpu": mcpu})

    def cpu_features(self) -> tuple[str, ...]:
        """Vector instruction sets that code for this target may use, as /proc/cpuinfo spells them.

        Raises:
            MissingDependencyError: TVM is not installed.
            TargetError: LLVM does not know the CPU.
        """
        import tvm.target.codegen as codegen

        found = {str(name) for name in codegen.llvm_get_cpu_features(self.tvm())}
        return tuple(flag for name, flag in _CPU_FLAGS.items() if name in found)


def _mcpu(text: str, options: list[str]) -> str | None:
    mcpu = None
    for option in options:
        name, equals, value = option.partition("=")
        if name != "-mcpu" or not equals or not value:
            raise TargetError(f"target {text!r}: {option!r} is not known; llvm takes -mcpu=NAME")
        mcpu = value
    return mcpu
