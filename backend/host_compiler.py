"""The compiler of the machine that compiles, which links libraries."""

from __future__ import annotations

import shutil

COMPILERS = ("g++", "clang++", "gcc", "clang", "cc")
_CPP_COMPILERS = ("g++", "clang++", "c++")


def find_host_compiler() -> str | None:
    """The first of `COMPILERS` on the path."""
    return next((name for name in COMPILERS if shutil.which(name)), None)


def find_cpp_compiler() -> str | None:
    """The first one on the path that links with the library of C++ by itself."""
    return next((name for name in _CPP_COMPILERS if shutil.which(name)), None)
