"""Runs the model that came in, in ONNX Runtime, on weights that are mapped from disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ..passes.errors import LoadError, MissingDependencyError

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], Arrays]

# Below this a weight stays in the proto, where shape inference and folding can look at it.
_SMALL = 1024
# Up to this many bytes are handed to ONNX Runtime in memory, which copies them.
_IN_MEMORY = 64 * 2**20


@contextmanager
def dense_session(model: ir.Model, *, threads: int | None = None) -> Iterator[Run]:
    """`run(inputs) -> outputs by name`, as fast as ONNX Runtime is by default.

    The model is not changed. Weights are mapped from where they lie, or from a temporary folder
    if they lie in memory, so that they are not held twice and may exceed 2 GiB.

    Args:
        model: the captured model.
        threads: of one operator; as many as there are cores if None.

    Raises:
        LoadError: ONNX Runtime refuses the model; it says why.
    """
    with on_disk(model) as stored:
        yield open_session(stored, threads=threads)


@dataclass(frozen=True)
class DenseModel:
    """A dense model in ONNX Runtime.

    Attributes:
        run: gives its outputs for inputs by name.
        typed: gives those inputs with floats of the types that the dense model takes.
    """

    run: Run
    typed: Callable[[Arrays], Arrays]


@contextmanager
def dense_model(path: str, threads: int | None = None) -> Iterator[DenseModel]:
    """The model of a file, in ONNX Runtime."""
    from .load import load
    from .samples import typed

    loaded = load(path)
    with dense_session(loaded, threads=threads) as run:
        yield DenseModel(run, lambda sample: typed(sample, loaded))


def run_dense(model: ir.Model, samples: Iterable[Mapping[str, NDArray[Any]]]) -> list[Arrays]:
    """The outputs of the dense model for each sample, with little memory."""
    with on_disk(model) as stored:
        run = open_session(stored, lean=True)
        return [run(sample) for sample in samples]


@contextmanager
def on_disk(model: ir.Model) -> Iterator[ir.Model]:
    """A copy of the graph whose weights lie in files of one folder, but for 64 MiB at most.

    Those of a file that the model came from stay where they are; otherwise a temporary folder
    takes them for as long as this lasts.
    """
    stored = model.clone()
    tensors = [value.const_value for value in stored.graph.initializers.values()]
    folders = {t.base_dir for t in tensors if isinstance(t, ir.ExternalTensor)}
    in_memory = sum(t.nbytes for t in tensors if t and not isinstance(t, ir.ExternalTensor))
    if len(folders) <= 1 and in_memory <= _IN_MEMORY:
        yield stored
        return
    with tempfile.TemporaryDirectory(prefix="undense-") as folder:
        yield ir.external_data.unload_from_model(
            stored, folder, "weights.data", size_threshold_bytes=_SMALL
        )


def open_session(stored: ir.Model, *, threads: int | None = None, lean: bool = False) -> Run:
    """A session on a model of `on_disk`, while that lasts.

    Args:
        stored: the model, whose external weights lie in one folder.
        threads: as in `dense_session`.
        lean: no weights packed beforehand: less memory, and somewhat slower.

    Raises:
        LoadError: ONNX Runtime refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "running the dense model needs ONNX Runtime: pip install 'undense[cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    options.intra_op_num_threads = threads or 0
    if lean:
        # The arena stays: without it the C library's heap falls to pieces and takes twice as much.
        options.add_session_config_entry("session.disable_prepacking", "1")
    tensors = (value.const_value for value in stored.graph.initializers.values())
    folder = next((t.base_dir for t in tensors if isinstance(t, ir.ExternalTensor)), None)
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(Path(folder))
        )
    try:
        session = onnxruntime.InferenceSession(
            ir.to_proto(stored).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise LoadError(f"ONNX Runtime cannot run the model: {ort_message(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


def ort_message(error: Exception) -> str:
    """What ONNX Runtime says behind its codes and the places in its own source."""
    text = " ".join(str(error).split())
    return text.rpartition("Status Message: ")[2] or type(error).__name__
