"""`Manifest`: what an artifact is, takes and gives; the one file of it that is read unchecked."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from ..passes.errors import ArtifactError

FORMAT = "undense artifact"
FORMAT_VERSION = 1

Engine = Literal["tvm", "ort"]
Device = Literal["cpu", "cuda"]
Kernels = Literal["tvm"]
Dimension = int | str | None

DTYPES = frozenset(
    [
        "bfloat16",
        "bool",
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    ]
)

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_ARCHITECTURE = re.compile(r"sm_\d{2,3}a?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a module.

    Attributes:
        name: as in the graph.
        dtype: a name out of `DTYPES`: numpy's, and "bfloat16".
        shape: a length, a symbol ("batch"), an expression of symbols ("past + sequence"), or None
            where nothing is known.
        bounds: lowest and highest value allowed, both included, for an input of indices.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]
    bounds: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _expect(isinstance(self.name, str) and self.name != "", "a tensor has no name")
        _expect(
            self.dtype in DTYPES,
            f"{self.name}: dtype {self.dtype!r} is not supported; known are {sorted(DTYPES)}",
        )
        for dim in self.shape:
            fits = dim is None or isinstance(dim, str) or (_is_int(dim) and dim >= 0)
            _expect(fits, f"{self.name}: {dim!r} is no dimension")
        if self.bounds is not None:
            _check_bounds(self.name, self.bounds)

    def __str__(self) -> str:
        """`x: float32[batch, 64]`."""
        shape = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {self.dtype}[{shape}]"


@dataclass(frozen=True)
class Tolerance:
    """The largest execution error an output may show, and the reasoning behind the figure."""

    bound: float
    derivation: str

    def __post_init__(self) -> None:
        fits = isinstance(self.bound, int | float) and 0 <= self.bound < float("inf")
        _expect(fits, f"tolerance {self.bound!r} is no bound")


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file of the artifact."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _expect(_SHA256.fullmatch(self.sha256) is not None, f"{self.sha256!r} is no sha256")
        _expect(_is_int(self.bytes) and self.bytes >= 0, f"{self.bytes!r} is no size")


@dataclass(frozen=True)
class Manifest:
    """Everything that a session has to know before it opens another file of the artifact.

    Attributes:
        engine: the one the artifact was made for; `load` takes it if it is installed.
        target: text of the target, such as "llvm" or "ort-cpu".
        device: where it was made to run; artifacts from before there was another say "cpu".
        architectures: of the GPUs that `module.so` holds code for, as nvcc names them, in rising
            order; later GPUs take that of the last. Empty for a CPU.
        inputs, outputs: in the order of positional arguments and of results.
        dimension_bounds: lowest and highest length of a symbol, both included.
        parameters: names in `weights.safetensors`, in the order in which TVM's main wants them.
        cpu_features: flags of /proc/cpuinfo that `module.so` or `kernels.so` cannot run without.
        kernels: what made `kernels.so`, which ONNX Runtime runs instead of the functions of
            `model.onnx`; None without it.
        execution_tolerance: by name of the output.
        versions: of the packages that made the artifact.
        files: by name; filled by `write_artifact`.
    """

    engine: Engine
    target: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    dimension_bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    kernels: Kernels | None = None
    execution_tolerance: Mapping[str, Tolerance] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    device: Device = "cpu"
    architectures: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _expect(self.engine in ("tvm", "ort"), f"engine {self.engine!r} is not known")
        _expect(self.device in ("cpu", "cuda"), f"device {self.device!r} is not known")
        _expect(self.kernels in (None, "tvm"), f"kernels {self.kernels!r} are not known")
        _expect(bool(self.outputs), "a module has at least one output")
        for name in self.architectures:
            _expect(_ARCHITECTURE.fullmatch(name) is not None, f"{name!r} is no architecture")
        for group in (self.inputs, self.outputs):
            names = [info.name for info in group]
            _expect(len(set(names)) == len(names), f"a name is used twice among {names}")
        for name, bounds in self.dimension_bounds.items():
            _check_bounds(name, bounds)
        for name in self.files:
            _expect(_FILE_NAME.fullmatch(name) is not None, f"{name!r} is no plain file name")

    def to_json(self) -> str:
        """Indented JSON with sorted keys: the same manifest gives the same bytes."""
        document = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, origin: str) -> Manifest:
        """The manifest of a JSON text; `origin` is named in errors.

        Raises:
            ArtifactError: not a manifest, one of a newer format, or one with damaged fields.
        """
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ArtifactError(f"{origin} is not the manifest of an undense artifact")
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{origin} has format version {version}, this undense reads {FORMAT_VERSION}: "
                "install the undense that wrote it, or compile the model again"
            )
        try:
            return _manifest(document)
        except (ArtifactError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{origin} is damaged ({error}); build the artifact again"
            ) from error


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that decide what an artifact does."""
    names = [
        "undense",
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxruntime",
        "onnxruntime-gpu",
        "torch",
        "apache-tvm",
        "apache-tvm-ffi",
        "safetensors",
        "ml_dtypes",
    ]
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _manifest(document: dict[str, Any]) -> Manifest:
    pairs = document["dimension_bounds"].items()
    tolerances = document["execution_tolerance"].items()
    return Manifest(
        engine=document["engine"],
        target=str(document["target"]),
        inputs=tuple(_tensor_info(item) for item in document["inputs"]),
        outputs=tuple(_tensor_info(item) for item in document["outputs"]),
        dimension_bounds={name: (low, high) for name, (low, high) in pairs},
        parameters=tuple(map(str, document["parameters"])),
        cpu_features=tuple(map(str, document["cpu_features"])),
        kernels=document.get("kernels"),
        device=document.get("device", "cpu"),
        architectures=tuple(map(str, document.get("architectures", ()))),
        execution_tolerance={name: Tolerance(**item) for name, item in tolerances},
        versions=dict(document["versions"]),
        files={name: FileEntry(**item) for name, item in document["files"].items()},
    )


def _tensor_info(item: dict[str, Any]) -> TensorInfo:
    bounds = item["bounds"]
    return TensorInfo(
        name=item["name"],
        dtype=item["dtype"],
        shape=tuple(item["shape"]),
        bounds=None if bounds is None else (bounds[0], bounds[1]),
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_bounds(name: str, bounds: tuple[int, int]) -> None:
    low, high = bounds
    _expect(_is_int(low) and _is_int(high) and low <= high, f"{name}: bounds {bounds} are empty")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ArtifactError(message)
