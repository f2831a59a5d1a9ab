"""What the bundle holds, the aims of the project first: time may run out on the GPU host."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from undense.backend.cuda.module import cuda_modules
from undense.backend.kernels.lowering import lowering_context
from undense.backend.target import Target

from .decode import decode_case
from .other_kernels import attention_case, norm_case
from .products import ROWS, Functions, product_case, product_name
from .runner.spec import Case

SHAPES = ((4096, 11008), (4096, 4096), (11008, 4096))
"""Outputs and inputs."""

TIED, FREE = "trit_planes{planes=2}", "trit_planes{planes=2,tied=false}"
LOW_RANK = "low_rank{ratio=0.25}"
SCHEMES = (
    *(TIED, LOW_RANK, "dense", FREE, "int_codes{bits=4,group=128}", "int_codes{bits=8,group=128}"),
    *(f"monarch{{ratio=0.25,blocks={blocks}}}" for blocks in (16, 64)),
)
DECODE = ((TIED, "int_codes{bits=8,group=128}"), ("dense", "dense"))
"""Schemes of the layers, and of the embedding that is the head too."""

HOPPER = "sm_90a"
"""The architecture whose own instructions multiply many rows: measured beside the bundle's."""

PREFILL = (128, 512, 2048)
"""Rows that such products are measured at."""

HEADS, SHARED = 32, 8
LENGTH, CACHES = 2048, (2048, 4096)


@dataclass(frozen=True)
class Recipe:
    """How a case is compiled.

    Attributes:
        name: of the case.
        compile: writes the library of a name into a folder and returns the case.
    """

    name: str
    compile: Callable[[Target, Path, str], Case]


def recipes() -> list[Recipe]:
    """All cases in the order in which they are measured."""
    first = [_product(scheme, shape, "float16") for scheme in SCHEMES[:3] for shape in SHAPES]
    hopper = [
        _product(scheme, shape, "float16", PREFILL, HOPPER)
        for scheme in (TIED, "dense", FREE)
        for shape in SHAPES[:2]
    ]
    others = [_product(scheme, shape, "float16") for scheme in SCHEMES[3:] for shape in SHAPES]
    others += [_product("dense", shape, "bfloat16") for shape in SHAPES]
    decode = [_decode(scheme, head, "bfloat16") for scheme, head in DECODE]
    return [*first, *hopper, *decode, *_without_weights(), *others]


def _without_weights() -> list[Recipe]:
    found = [
        Recipe(
            f"rms_norm {features} float16",
            partial(compile_functions, partial(norm_case, features, "float16")),
        )
        for features in (2048, 4096)
    ]
    for size in (64, 128):
        for what, queries, keys, causal in (
            ("decode", 1, CACHES, False),
            ("prefill", LENGTH, (LENGTH,), False),
            ("prefill, causal", LENGTH, (LENGTH,), True),
        ):
            given = (HEADS, SHARED, size, "float16", queries, keys)
            make = partial(attention_case, *given, causal=causal)
            name = f"attention {what} {HEADS}/{SHARED} heads of {size} float16"
            found.append(Recipe(name, partial(compile_functions, make)))
    return found


def _product(
    scheme: str,
    shape: tuple[int, int],
    dtype: str,
    rows: Sequence[int] = ROWS,
    architecture: str = "",
) -> Recipe:
    make = partial(product_case, scheme, shape, dtype, rows, architecture)
    name = product_name(scheme, shape, dtype, architecture)
    if architecture:
        return Recipe(name, partial(compile_for, architecture, make))
    return Recipe(name, partial(compile_functions, make))


def _decode(scheme: str, head: str, dtype: str) -> Recipe:
    name = f"decode 1b {scheme} head {head} {dtype}"
    return Recipe(name, partial(compile_model, scheme, head, dtype))


def compile_functions(
    make: Callable[[], tuple[Case, Functions]], target: Target, folder: Path, library: str
) -> Case:
    """Compiles the PrimFuncs that `make` gives with a case, each a function of the library."""
    import tvm

    machine = target.tvm()
    with machine:
        case, functions = make()
        with cuda_modules(target.architectures), lowering_context():
            executable = tvm.compile(tvm.IRModule(functions), target=machine)
    executable.export_library(os.fspath(folder / library))
    return replace(case, library=library)


def compile_for(
    architecture: str,
    make: Callable[[], tuple[Case, Functions]],
    target: Target,
    folder: Path,
    library: str,
) -> Case:
    """As `compile_functions`, for one architecture instead of the bundle's."""
    return compile_functions(make, Target.parse(f"cuda -arch={architecture}"), folder, library)


def compile_model(
    scheme: str, head: str, dtype: str, target: Target, folder: Path, library: str
) -> Case:
    """Compiles a decode step for TVM's virtual machine."""
    case, code = decode_case(scheme, head, dtype, target)
    code.executable.export_library(os.fspath(folder / library))
    return replace(case, library=library)


def chosen(only: Sequence[str]) -> list[Recipe]:
    """Those that a pattern names."""
    found = recipes()
    return [r for r in found if any(fnmatch.fnmatchcase(r.name, pattern) for pattern in only)]
