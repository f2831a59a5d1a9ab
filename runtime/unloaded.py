"""`Unloaded`: an artifact that was made here for a device that is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from ..passes.errors import MissingDependencyError, TargetError, UndenseError
from .artifact import Artifact, open_artifact
from .calls import Call
from .hardware import usable_cores
from .session import Session, load


class Unloaded(Session):
    """What an artifact says of itself, where it cannot run.

    Attributes:
        reason: why not, and what to do about it; every call raises it.
    """

    def __init__(self, artifact: Artifact, reason: UndenseError) -> None:
        super().__init__(artifact, usable_cores(), artifact.manifest.device)
        self.engine = artifact.manifest.engine
        self.reason = reason

    def __repr__(self) -> str:
        """What any session says, and why this one cannot run."""
        return f"{super().__repr__().removesuffix('>')}, not loaded: {self.reason}>"

    def _results(self, values: Mapping[str, Any]) -> NoReturn:
        raise type(self.reason)(str(self.reason))

    def _execute(self, arrays: Sequence[NDArray[Any]]) -> NoReturn:
        raise type(self.reason)(str(self.reason))

    def _trace(self, arrays: Sequence[NDArray[Any]], runs: int) -> list[list[Call]]:
        raise type(self.reason)(str(self.reason))


def load_if_possible(path: str | Path) -> Session:
    """The artifact loaded for its device; an `Unloaded` one if that is a GPU which is not here.

    Raises:
        UndenseError: anything else that `load` refuses.
    """
    try:
        return load(path)
    except (MissingDependencyError, TargetError) as error:
        artifact = open_artifact(path)
        if artifact.manifest.device == "cpu":
            raise
        return Unloaded(artifact, error)
