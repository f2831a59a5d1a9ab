"""A model to time as a loaded session: lowered and loaded as any other."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...runtime.artifact import Manifest, package_versions, write_artifact
from ...runtime.session import Session, load
from ..package import lower, tensor_infos
from ..target import Target


def write(model: ir.Model, target: Target, path: Path) -> None:
    """The model compiled with the records of this machine, as an artifact at `path`."""

    def fill(folder: Path) -> Manifest:
        lowered = lower(model, target, folder, with_onnx=False)
        return Manifest(
            engine=lowered.engine,
            target=str(target),
            device=target.device,
            architectures=target.architectures,
            inputs=tensor_infos(model.graph.inputs, {}),
            outputs=tensor_infos(model.graph.outputs, {}),
            dimension_bounds=lowered.dimension_bounds,
            parameters=lowered.parameters,
            cpu_features=lowered.cpu_features,
            kernels=lowered.kernels,
            versions={**package_versions(), **lowered.versions},
        )

    write_artifact(path, fill)


def built(model: ir.Model, target: Target, path: Path, threads: int) -> Session:
    """The same, loaded."""
    write(model, target, path)
    return load(path, num_threads=threads)
