"""What this machine does at most: compiles and runs peak.c, and reads what it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from undense.passes.errors import InputError, MissingDependencyError

SOURCE = Path(__file__).parent / "peak.c"
Arithmetic = Literal["float32", "int8"]
_CACHE_SHARE = 0.75
"""Of a cache, up to which weights that are read again and again are taken to stay in it."""


@dataclass(frozen=True)
class Peak:
    """The limits of one number of threads.

    Attributes:
        fma_gflops: float32 multiply-adds by the width of the vectors in bits.
        int8_gops: int8 dot products by the name of the instruction; empty where there is none.
        read_gb_per_s: by level: `L2`, `L3`, `memory`.
        cache_bytes: of `L2`, all cores that run a thread together, and of `L3`.
    """

    fma_gflops: Mapping[str, float]
    int8_gops: Mapping[str, float]
    read_gb_per_s: Mapping[str, float]
    cache_bytes: Mapping[str, int]

    def operations(self, arithmetic: Arithmetic) -> float | None:
        """10^9 operations a second; None if they were not measured."""
        return max((self.fma_gflops if arithmetic == "float32" else self.int8_gops).values(),
                   default=None)  # fmt: skip

    def level(self, size: int) -> str:
        """The fastest level that holds so many bytes."""
        for level, held in self.cache_bytes.items():
            if size <= _CACHE_SHARE * held:
                return level
        return "memory"


def measure(threads: Sequence[int]) -> dict[int, Peak]:
    """The limits of each number of threads, in some seconds.

    Raises:
        MissingDependencyError: no C compiler, or one that cannot build the program.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise MissingDependencyError(
            "the limits of this machine are measured by a C program and no C compiler is on the "
            "path; install gcc or clang, or name one with CC"
        )
    with tempfile.TemporaryDirectory(prefix="undense-peak-") as folder:
        program = str(Path(folder) / "peak")
        command = [*compiler.split(), "-O3", "-march=native", "-pthread", "-o", program]
        built = subprocess.run([*command, str(SOURCE)], capture_output=True, text=True, check=False)
        if built.returncode:
            raise MissingDependencyError(
                f"{compiler} cannot build {SOURCE.name} ({built.stderr.strip()[:300]}); "
                "name another compiler with CC"
            )
        done = subprocess.run(
            [program, *map(str, threads)], capture_output=True, text=True, check=True
        )
    return parse(done.stdout)


def parse(text: str) -> dict[int, Peak]:
    """The lines of peak.c by the number of threads.

    Raises:
        InputError: a line that peak.c does not print.
    """
    caches: dict[int, int] = {}
    found: dict[int, dict[str, dict[str, float]]] = {}
    for line in text.splitlines():
        try:
            name, *words = line.split()
            fields = dict(word.split("=") for word in words if "=" in word)
            if name == "cache":
                caches[int(fields["level"])] = 1024 * int(fields["kib"])
                continue
            threads = int(fields.pop("threads"))
            (detail,) = fields.values()
            values = found.setdefault(threads, {"fma": {}, "int8": {}, "read": {}})[name]
            values[detail] = float(words[-1])
        except (ValueError, KeyError) as error:
            raise InputError(f"peak.c printed {line!r}, which peak.py cannot read") from error
    return {threads: _peak(threads, values, caches) for threads, values in found.items()}


def _peak(threads: int, found: Mapping[str, dict[str, float]], caches: Mapping[int, int]) -> Peak:
    # The sizes that are read grow from level to level.
    read = dict(zip(("L2", "L3", "memory"), found["read"].values(), strict=True))
    held = {"L2": threads * caches[2], "L3": caches[3]}
    return Peak(found["fma"], found["int8"], read, held)
