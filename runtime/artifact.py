"""The artifact folder: written whole or not at all, and checked by hash before it is used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..passes.errors import ArtifactError
from .atomic import move_into_place, temporary_sibling, termination_as_exception
from .manifest import (
    Device,
    Dimension,
    Engine,
    FileEntry,
    Kernels,
    Manifest,
    TensorInfo,
    Tolerance,
    package_versions,
)

__all__ = [
    "ENGINE_FILES",
    "Artifact",
    "Device",
    "Dimension",
    "Engine",
    "FileEntry",
    "Kernels",
    "Manifest",
    "TensorInfo",
    "Tolerance",
    "check_destination",
    "open_artifact",
    "package_versions",
    "write_artifact",
]

MANIFEST = "manifest.json"
PLAN = "plan.json"
REPORT = "report.json"
REPORT_HTML = "report.html"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"
MODULE = "module.so"
KERNELS = "kernels.so"
CUBLAS = "cublas.so"
WEIGHTS = "weights.safetensors"
EXAMPLES = "example_inputs.npz"
REFERENCES = "reference_outputs.npz"

ENGINE_FILES: Mapping[Engine, tuple[str, ...]] = {"tvm": (MODULE, WEIGHTS), "ort": (MODEL,)}
"""What an artifact must hold for an engine to be able to run it."""


@dataclass(frozen=True)
class Artifact:
    """An artifact folder whose files are those of its manifest."""

    path: Path
    manifest: Manifest

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines whose files are in the artifact, the one it was made for first."""
        there = [
            engine
            for engine, needed in ENGINE_FILES.items()
            if all(name in self.manifest.files for name in needed)
        ]
        return tuple(sorted(there, key=lambda engine: engine != self.manifest.engine))

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists.

        Raises:
            ArtifactError: the artifact holds no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path} holds no {name}; build the artifact again with it")
        return self.path / name

    @property
    def report(self) -> dict[str, Any]:
        """What was replaced by what, why and at what cost; `bytes.folder` is all of the artifact.

        Raises:
            ArtifactError: the artifact holds no report.
        """
        report: dict[str, Any] = json.loads(self.file(REPORT).read_text(encoding="utf-8"))
        folder = sum(entry.bytes for entry in self.manifest.files.values())
        return {**report, "bytes": {**report["bytes"], "folder": folder}}

    def save(self, destination: str | Path) -> Artifact:
        """A copy of the artifact at `destination`, written like a new one."""
        if Path(destination).resolve() == self.path.resolve():
            return self

        def fill(folder: Path) -> Manifest:
            for name, entry in self.manifest.files.items():
                shutil.copyfile(self.path / name, folder / name)
                _check_file(folder / name, entry)
            return self.manifest

        return write_artifact(destination, fill)


def open_artifact(path: str | Path) -> Artifact:
    """The artifact at `path`, after every file of it was found whole.

    Raises:
        ArtifactError: no artifact, one of another format version, or a file that is missing or
            whose hash is not that of the manifest.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry)
    return Artifact(folder, manifest)


def write_artifact(destination: str | Path, fill: Callable[[Path], Manifest]) -> Artifact:
    """Writes a folder by `fill(temporary folder)`, hashes it and moves it to `destination`.

    An artifact that stands at `destination` is replaced. Whatever ends `fill` early, an
    interrupt or SIGTERM included, leaves `destination` as it was and nothing beside it.

    Args:
        destination: of the artifact; its parent is created.
        fill: writes plain files (no folders) and returns the manifest, whose `files` are ignored.

    Raises:
        ArtifactError: something that is no artifact stands at `destination`, or the disk is full.
    """
    target = Path(destination)
    check_destination(target)
    try:
        with termination_as_exception(), temporary_sibling(target) as folder:
            manifest = fill(folder)
            files = {item.name: _entry(item) for item in sorted(folder.iterdir())}
            manifest = dataclasses.replace(manifest, files=files)
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            check_destination(target)
            move_into_place(folder, target)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}") from error
    return Artifact(target, manifest)


def check_destination(destination: str | Path) -> None:
    """Refuses what `write_artifact` would refuse, so that long work need not end in it.

    Only an artifact or an empty folder is ever replaced.

    Raises:
        ArtifactError: something else stands at `destination`.
    """
    target = Path(destination)
    if target.is_symlink():
        raise ArtifactError(f"{target} is a symbolic link; choose another destination")
    if not target.exists():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    try:
        manifest = _read_manifest(target)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; it is left as it is, choose another destination") from None
    foreign = sorted({item.name for item in target.iterdir()} - {MANIFEST, *manifest.files})
    if foreign:
        raise ArtifactError(
            f"{target} holds {foreign[0]}, which is no part of the artifact there; "
            "move it away or choose another destination"
        )


def _read_manifest(folder: Path) -> Manifest:
    if not folder.exists():
        raise ArtifactError(f"{folder} does not exist; `undense compile` makes an artifact")
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; an undense artifact is a folder")
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is no undense artifact: it has no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    return Manifest.from_json(text, str(path))


def _check_file(path: Path, entry: FileEntry) -> None:
    try:
        found = _entry(path)
    except OSError as error:
        cause = "is missing" if isinstance(error, FileNotFoundError) else f"is unreadable: {error}"
        raise ArtifactError(f"{path} {cause}; build the artifact again") from error
    if found != entry:
        raise ArtifactError(
            f"{path} is damaged: its sha256 is not that of the manifest; build the artifact again"
        )


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(sha256=digest, bytes=file.tell())
