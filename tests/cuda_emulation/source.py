"""Turns the CUDA source of TVM into host source that the emulation's headers understand."""

from __future__ import annotations

import re

_KERNEL = re.compile(
    r'^extern "C" __global__ void(?: __launch_bounds__\((?P<threads>\d+)[^)]*\))? '
    r"(?P<name>\w+)\([^)]*\)\s*\{",
    re.MULTILINE,
)
_INCLUDE = re.compile(r"^\s*#include .*$", re.MULTILINE)
_STATIC_ALIGNMENT = re.compile(r"__shared__ alignas\(")
_DYNAMIC = re.compile(
    r"extern __shared__ (?:(?:alignas|__align__)\(\d+\) )?(?P<type>[\w ]+?) (?P<name>\w+)\[\];"
)
# The last steps of TVM's reductions of bfloat16, which has no shuffle there.
_STEP = re.compile(r"^(\s*)(\(\(volatile \w+\*\)\w+\)\[.*\] = w_\d+_\w+;)$", re.MULTILINE)
_MOST_THREADS = 1024


def host_source(cuda: str) -> str:
    """The same kernels for a host compiler, each with its description for the driver.

    What CUDA's compiler knows by itself and a macro cannot say is written out: the section with a
    kernel's static shared memory, and the address of its dynamic one.
    """
    kernels = [(match["name"], match["threads"]) for match in _KERNEL.finditer(cuda)]
    if not kernels:
        raise ValueError('the CUDA source holds no kernel: no `extern "C" __global__` with a body')
    source = _INCLUDE.sub("", cuda)
    source = _STATIC_ALIGNMENT.sub("__shared__ __align__(", source)
    source = _DYNAMIC.sub(r"\g<type>* \g<name> = (\g<type>*)emulation::dynamic_shared;", source)
    # They rely on the lanes of a warp storing at once, as they do where none has gone another way.
    source = _STEP.sub(r"\1emulation::meet(); \2 emulation::meet();", source)
    source = _KERNEL.sub(_with_section, source)
    entries = [f"EMULATED_KERNEL({name}, {threads or _MOST_THREADS})" for name, threads in kernels]
    return "\n".join([source, *entries, ""])


def _with_section(kernel: re.Match[str]) -> str:
    # Directives end with their line, so that the lines of the source keep their numbers but here.
    return (
        "#undef EMULATED_SHARED_SECTION\n"
        f'#define EMULATED_SHARED_SECTION "shared_{kernel["name"]}"\n'
        f"{kernel[0]}"
    )
