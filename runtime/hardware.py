"""The machine at hand: its processor, its cores, its instruction sets."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_TOLD = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8")


def usable_cores() -> int:
    """Physical cores this process may run on: the default number of threads of every engine."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for record in _processors():
        number = int(record.get("processor", -1))
        if number in allowed:
            cores.add((record.get("physical id"), record.get("core id", number)))
    return len(cores) or len(allowed)


def last_cache_bytes() -> int:
    """Bytes of the largest cache that a core uses; 32 MiB where it cannot be told."""
    sizes = [_bytes(path) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=0) or _USUAL_CACHE


def cpu_flags() -> frozenset[str] | None:
    """Names of the instruction sets, as Linux spells them; None where they cannot be told."""
    for record in _processors():
        flags = record.get("flags") or record.get("Features")
        if flags:
            return frozenset(flags.split())
    return None


def machine() -> dict[str, Any]:
    """Processor, cores, vector instruction sets and system, for beside a timing."""
    model = next((r["model name"] for r in _processors() if "model name" in r), platform.machine())
    flags = cpu_flags() or frozenset()
    return {
        "cpu": model,
        "cores": usable_cores(),
        "flags": [flag for flag in _TOLD if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _bytes(path: Path) -> int:
    """Of a file such as `32768K`; 0 where it is another."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return 0
    number, unit = text[:-1], _UNITS.get(text[-1:])
    return int(number) * unit if number.isdecimal() and unit else 0


def _processors() -> list[dict[str, str]]:
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return []
    records = []
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        record = {key.strip(): value.strip() for key, colon, value in pairs if colon}
        if record:
            records.append(record)
    return records
