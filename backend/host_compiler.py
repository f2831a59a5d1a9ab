"""The compiler of the machine that compiles, which links libraries."""

from __future__ import annotations

import shutil

COMPILERS = ("g++", "clang++", "gcc", "clang", "cc")


def find_host_compiler() -> str | None:
    """The first of `COMPILERS` on the path."""
    return next((name for name in COMPILERS if shutil.which(name)), None)
