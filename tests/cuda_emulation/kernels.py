"""Compiles generated CUDA source into an image that the emulated driver loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cuda_emulation.libraries import driver_library
from cuda_emulation.source import host_source
from cuda_emulation.toolchain import (
    FOLDER,
    built,
    cache_folder,
    content_hash,
    fingerprint,
    include_flags,
    run_compiler,
)

_FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-ffp-contract=off",
    # Registers that nothing was assigned to hold NaN as halves, and -1.7e38 as floats.
    "-ftrivial-auto-var-init=pattern",
    # A GPU faults where a vector's address is no multiple of its size, and so does the emulation.
    "-fsanitize=alignment",
    "-fno-sanitize-recover=alignment",
    "-w",
)
_MAGIC = "CUDA emulation image\n"


def compile(source: str, headers: Sequence[Path] = ()) -> bytes:
    """The image of CUDA source: the name of a host library.

    Args:
        source: CUDA C++ as TVM generates it.
        headers: what the kernels include beside CUDA's own and the emulated device functions.
    """
    prelude = _prelude(tuple(headers))
    text = host_source(source)
    library = cache_folder() / f"kernels-{content_hash(prelude.name.encode(), text.encode())}.so"

    def build(target: Path) -> None:
        unit = target.with_suffix(".o")
        run_compiler([*_FLAGS, "-include", prelude, "-c", "-x", "c++", "-", "-o", unit], text)
        # The sanitizer's one function is the driver's, so the flag is not for the linker.
        run_compiler(["-shared", unit, driver_library(), "-o", target])

    return f"{_MAGIC}{built(library, build)}\n".encode()


def _prelude(headers: tuple[Path, ...]) -> Path:
    """The header that comes before each kernel; g++ finds its precompiled form beside it."""
    files = [FOLDER / "emulation.h", FOLDER / "twins.h", *headers, FOLDER / "entry.h"]
    text = "".join(f'#include "{file.resolve()}"\n' for file in files)
    contents = [file.read_bytes() for file in headers]
    key = content_hash(fingerprint().encode(), repr(_FLAGS).encode(), text.encode(), *contents)
    header = built(cache_folder() / f"prelude-{key}.h", lambda target: _write(target, text))
    built(
        header.with_suffix(".h.gch"),
        lambda target: run_compiler(
            [*_FLAGS, *include_flags(), "-x", "c++-header", header, "-o", target]
        ),
    )
    return header


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
