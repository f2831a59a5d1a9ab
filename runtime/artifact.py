"""The artifact folder: written whole or not at all, and checked by hash before it is used."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..passes.errors import ArtifactError
from .manifest import (
    Dimension,
    Engine,
    FileEntry,
    Manifest,
    TensorInfo,
    Tolerance,
    package_versions,
)

__all__ = [
    "ENGINE_FILES",
    "Artifact",
    "Dimension",
    "Engine",
    "FileEntry",
    "Manifest",
    "TensorInfo",
    "Tolerance",
    "open_artifact",
    "package_versions",
    "read_arrays",
    "write_arrays",
    "write_artifact",
]

MANIFEST = "manifest.json"
PLAN = "plan.json"
REPORT = "report.json"
REPORT_HTML = "report.html"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"
MODULE = "module.so"
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
    _check_replaceable(target)
    try:
        with _termination_as_exception(), _temporary_sibling(target) as folder:
            manifest = fill(folder)
            files = {item.name: _entry(item) for item in sorted(folder.iterdir())}
            manifest = dataclasses.replace(manifest, files=files)
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            _check_replaceable(target)
            _move_into_place(folder, target)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}") from error
    return Artifact(target, manifest)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An uncompressed `.npz` with its members in the order of their names, so bytes repeat."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All members of an `.npz`; pickled objects are refused.

    Raises:
        ArtifactError: the file is missing or is no such archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise ValueError("a single array")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ArtifactError(f"{path} cannot be read as .npz: {error}") from error


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


def _check_replaceable(target: Path) -> None:
    """Only an artifact, or an empty folder, may be replaced: nothing else is ever deleted."""
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


@contextlib.contextmanager
def _temporary_sibling(target: Path) -> Iterator[Path]:
    """A new folder on the file system of `target`; made with the user's permissions."""
    parent = target.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    previous = folder.with_suffix(".previous")
    target.rename(previous)
    try:
        folder.rename(target)
    except BaseException:
        previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    """SIGTERM ends the process through `finally` blocks, if nobody else handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
