"""Compiled code of an artifact: whether this processor runs it, by which path, why it failed."""

from __future__ import annotations

from ..passes.errors import TargetError
from .artifact import Artifact
from .hardware import cpu_flags


def library_path(artifact: Artifact, name: str) -> str:
    """The path of a library, its last separator written as `//` and `/./` after its hash's bits.

    The dynamic linker knows libraries by the spelling of their path: without this, an artifact
    that replaced another one in its place would be given the code of the one before.

    Raises:
        ArtifactError: the artifact holds no such file.
    """
    path = artifact.file(name)
    bits = f"{int(artifact.manifest.files[name].sha256[:16], 16):064b}"
    separator = "".join("/." if bit == "1" else "/" for bit in bits)
    return f"{path.parent.resolve()}{separator}/{path.name}"


def check_processor(artifact: Artifact, remedy: str) -> None:
    """Refuses code that would end the process: an instruction this processor does not know.

    Raises:
        TargetError: names what is missing, and `remedy`.
    """
    flags = cpu_flags()
    missing = [] if flags is None else sorted(set(artifact.manifest.cpu_features) - flags)
    if missing:
        raise TargetError(
            f"{artifact.path} was compiled for a processor with {', '.join(missing)}, which this "
            f"one lacks: {remedy}"
        )


def last_line(error: Exception) -> str:
    """What an error says after its stack, or its kind where it says nothing."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
