"""`Target`: what to compile for, parsed once from text such as `cuda -arch=sm_80,sm_90`."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir

from ..passes.errors import MissingDependencyError, TargetError
from ..passes.structures.base import Activations, Form
from ..runtime.artifact import Device, Kernels
from .cuda.limits import shared_limit

_KNOWN = (
    *("llvm", "llvm -mcpu=NAME", "cuda", "cuda -arch=sm_NN,... -libs=cublas"),
    *("ort-cpu", "ort-cuda"),
)

ARCHITECTURES = ("sm_80", "sm_90")
"""That `cuda` alone is compiled for: sm_86 and sm_89 run the code of sm_80, later ones the PTX."""

LEAST_ARCHITECTURE = 80
"""The first with asynchronous copies and tensor cores for bfloat16."""

_ARCHITECTURE = re.compile(r"sm_(\d{2,3})a?")

_HOST = "x86-64-v2"
"""What launches kernels runs on any server; it has nothing to compute."""

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


@dataclass(frozen=True)
class Graphs:
    """CUDA graphs of an artifact.

    Attributes:
        symbols: the dynamic dimensions that a graph may depend on, each with the greatest length
            that it is to be planned for, or None where the model states one; None in their place is
            all that have one.
    """

    symbols: tuple[tuple[str, int | None], ...] | None = None

    @property
    def wanted(self) -> bool | list[str]:
        """What `Target.with_graphs` makes them from."""
        if self.symbols is None:
            return True
        return [name if most is None else f"{name}={most}" for name, most in self.symbols]


@dataclass(frozen=True)
class Target:
    """An engine and the machine it runs on.

    Attributes:
        engine: `tvm` or `ort`.
        device: where the model runs.
        mcpu: LLVM's name of the CPU to generate code for; None is this machine's.
        architectures: of GPUs to generate code for, as nvcc names them, in rising order.
        libraries: of NVIDIA's that code may call where it runs: `cublas`, or none.
        kernels: for `ort`, what makes the kernels of structured nodes; None is ONNX Runtime.
        graphs: what is launched as CUDA graphs; None if nothing is.
        tuned: whether kernels take the tilings that measurements on this processor have chosen.
    """

    engine: Literal["tvm", "ort"]
    device: Device = "cpu"
    mcpu: str | None = None
    architectures: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    kernels: Kernels | None = None
    graphs: Graphs | None = None
    tuned: bool = True

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target that a text names.

        Raises:
            TargetError: an unknown name or option.
        """
        kind, *options = shlex.split(text) or [""]
        match kind:
            case "llvm":
                given = _options(text, options, {"-mcpu": "NAME"})
                return cls("tvm", mcpu=given.get("-mcpu"))
            case "cuda":
                given = _options(text, options, {"-arch": "sm_NN,...", "-libs": "cublas"})
                return cls(
                    "tvm",
                    "cuda",
                    architectures=_architectures(text, given.get("-arch")),
                    libraries=_libraries(text, given.get("-libs")),
                )
            case "ort-cpu" | "ort-cuda":
                if options:
                    raise TargetError(f"target {text!r}: {kind} takes no options")
                return cls("ort", "cuda" if kind == "ort-cuda" else "cpu")
        raise TargetError(f"target {text!r} is not known; known are {', '.join(_KNOWN)}")

    def with_kernels(self, kernels: str | None) -> Target:
        """The same target with its kernels named.

        Raises:
            TargetError: an unknown name, or a target that compiles all of its kernels anyway.
        """
        if kernels is None:
            return self
        if kernels != "tvm":
            raise TargetError(f"kernels {kernels!r} is not known; there is 'tvm', or none")
        if self.engine != "ort" or self.device != "cpu":
            raise TargetError(f"kernels is for target ort-cpu, not for {self}; leave it out")
        return replace(self, kernels="tvm")

    def form(self, *, portable: bool) -> Form:
        """How `model.onnx` writes structured nodes.

        Raises:
            TargetError: portable for another target than ort-cpu.
        """
        if portable and (self.engine, self.device) != ("ort", "cpu"):
            raise TargetError("portable is a form of model.onnx for target ort-cpu; leave it out")
        if (self.engine, self.device) == ("ort", "cuda"):
            return "cuda"
        return "portable" if portable else "fast"

    def check_onnx(self, *, wanted: bool) -> None:
        """Refuses to leave out `model.onnx` where nothing else runs.

        Raises:
            TargetError: it is not wanted for ONNX Runtime.
        """
        if self.engine == "ort" and not wanted:
            raise TargetError(
                f"model.onnx is what target {self} runs; it can be left out for llvm and cuda"
            )

    def with_graphs(self, wanted: bool | Sequence[str]) -> Target:
        """The same target with what is launched as CUDA graphs, if anything.

        Args:
            wanted: names of dimensions, or a name and its greatest length: `batch=8`.

        Raises:
            TargetError: CUDA graphs for another target than cuda, or a length that is none.
        """
        if wanted is False:
            return self
        if (self.engine, self.device) != ("tvm", "cuda"):
            raise TargetError(f"CUDA graphs are for target cuda, not for {self}; leave them out")
        symbols = None if wanted is True else tuple(map(_bounded, wanted))
        for name, count in Counter(name for name, _ in symbols or ()).items():
            if count > 1:
                raise TargetError(f"CUDA graphs: dimension {name!r} is there twice; give it once")
        return replace(self, graphs=Graphs(symbols))

    @property
    def compiles(self) -> bool:
        """Whether kernels are compiled for it."""
        return self.engine == "tvm" or self.kernels is not None

    @property
    def compiled_for(self) -> Target:
        """What TVM compiles the kernels for, whichever engine calls them."""
        return replace(self, engine="tvm", kernels=None)

    @property
    def activations(self) -> Activations:
        """What `activations=auto` stands for: only ONNX Runtime on CPUs gains by int8 alone."""
        return "int8" if (self.engine, self.device) == ("ort", "cpu") else "float"

    @property
    def activation_options(self) -> tuple[Activations, ...]:
        """What a planner tries behind codes: TVM's kernels for CPUs can round, and are faster."""
        if (self.engine, self.device) == ("tvm", "cpu"):
            return ("float", "int8")
        return (self.activations,)

    def check_dtype(self, dtype: ir.DataType) -> None:
        """Refuses to convert a model to a type that its engine does not compute in.

        Raises:
            TargetError: bfloat16, but for TVM on a GPU.
        """
        if dtype == ir.DataType.BFLOAT16 and (self.engine, self.device) != ("tvm", "cuda"):
            raise TargetError(
                f"target {self} does not compute in bfloat16; choose dtype float16, or target cuda"
            )

    def __str__(self) -> str:
        if self.engine == "ort":
            return f"ort-{self.device}"
        if self.device == "cuda":
            libraries = f" -libs={','.join(self.libraries)}" if self.libraries else ""
            return f"cuda -arch={','.join(self.architectures)}{libraries}"
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

        if self.device == "cuda":
            host = {"kind": "llvm", "mcpu": _HOST}
            # What only one of several architectures has is no choice for their common kernels.
            alone = len(self.architectures) == 1
            least = self.architectures[0] if alone else self.architectures[0].removesuffix("a")
            form = {
                "kind": "cuda",
                "arch": least,
                "max_shared_memory_per_block": shared_limit(self.architectures),
                "host": host,
            }
            if self.libraries:
                form["libs"] = list(self.libraries)
            return TvmTarget(form)
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
        if self.device == "cuda":
            return ()
        import tvm.target.codegen as codegen

        found = {str(name) for name in codegen.llvm_get_cpu_features(self.tvm())}
        return tuple(flag for name, flag in _CPU_FLAGS.items() if name in found)


def _options(text: str, options: list[str], known: dict[str, str]) -> dict[str, str]:
    """The values of the options that are given, by their names; `known` has the forms of values."""
    found = {}
    for option in options:
        name, equals, given = option.partition("=")
        if name not in known or not equals or not given:
            kind = text.split()[0]
            forms = " and ".join(f"{name}={form}" for name, form in known.items())
            raise TargetError(f"target {text!r}: {option!r} is not known; {kind} takes {forms}")
        found[name] = given
    return found


def _libraries(text: str, given: str | None) -> tuple[str, ...]:
    """Those of a list, of which there is one so far."""
    found = () if given is None else tuple(dict.fromkeys(given.split(",")))
    for name in found:
        if name != "cublas":
            raise TargetError(f"target {text!r}: library {name!r} is not known; there is cublas")
    return found


def _bounded(text: str) -> tuple[str, int | None]:
    """The name of a dimension, and the length behind it if there is one."""
    name, equals, length = text.partition("=")
    if name and not equals:
        return name, None
    if not name or not length.isdecimal() or int(length) < 1:
        raise TargetError(f"CUDA graphs: {text!r} is no dimension; write tokens or tokens=8")
    return name, int(length)


def _architectures(text: str, given: str | None) -> tuple[str, ...]:
    """Those of a list such as `sm_80,sm_90`, in rising order."""
    if given is None:
        return ARCHITECTURES
    found = {}
    for name in given.split(","):
        fit = _ARCHITECTURE.fullmatch(name)
        if fit is None:
            raise TargetError(
                f"target {text!r}: {name!r} is no architecture; write sm_80 or sm_80,sm_90"
            )
        if int(fit[1]) < LEAST_ARCHITECTURE:
            raise TargetError(
                f"target {text!r}: kernels need sm_{LEAST_ARCHITECTURE} or later, which {name} "
                "is not; choose target ort-cuda for it"
            )
        found[name] = (int(fit[1]), name)
    return tuple(sorted(found, key=found.__getitem__))
