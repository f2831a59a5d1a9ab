"""`resolve`: on which device an artifact is to run."""

from __future__ import annotations

from ..passes.errors import TargetError
from .artifact import Artifact, Device, Engine

DEVICES: tuple[Device, ...] = ("cpu", "cuda")


def resolve(artifact: Artifact, wanted: str | None, engine: Engine | None = None) -> Device:
    """The device that was asked for, or the one the artifact was made for.

    A module of TVM runs on no other. `model.onnx` runs on either, what else the artifact holds.

    Args:
        artifact: to run.
        wanted: "cpu" or "cuda"; None leaves it to the artifact.
        engine: that will run it; None is the one it was made for.

    Raises:
        TargetError: an unknown device, or one that the artifact holds no code for.
    """
    made_for = artifact.manifest.device
    if wanted is None:
        return made_for
    for device in DEVICES:
        if device == wanted:
            break
    else:
        raise TargetError(f"device {wanted!r} is not known; there are 'cpu' and 'cuda'")
    if (engine or artifact.manifest.engine) == "tvm" and device != made_for:
        remedy = f"compile the model for target {'llvm' if device == 'cpu' else 'cuda'}"
        if "ort" in artifact.engines:
            remedy += ", or load it with engine ort"
        raise TargetError(
            f"{artifact.path} holds code of TVM for {made_for} alone, not for {device}: {remedy}"
        )
    return device
