"""Dense layers by cuBLAS: its functions on the emulated device, but for the test marked `gpu`."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cuda_emulation
import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import undense
from cuda_emulation import cublas as emulated_cublas
from cuda_emulation.libraries import cublas_library
from graphs import graph, normal
from undense.backend.cuda.module import device_code_by
from undense.backend.cuda.nvcc import EMULATED_HEADERS
from undense.passes.errors import ArtifactError, MissingDependencyError, UndenseError
from undense.runtime import cublas, tvm_session
from undense.runtime.artifact import CUBLAS
from undense.runtime.session import Session, load

TARGET = "cuda -arch=sm_90 -libs=cublas"
INPUTS, HIDDEN, OUTPUTS = 40, 72, 24
TYPES = {"float16": 2, "bfloat16": 14, "float32": 0}
"""Their numbers in CUDA."""

ROUNDINGS = 8
"""Of the values on the path through the model, each of which adds to the error."""

LAYERS = """g (float[ROWS, 40] x) => (float[ROWS, 24] y) {
    up = MatMul(x, w1)
    biased = Add(up, b1)
    active = Relu(biased)
    y = Gemm <transB = 1> (active, w2, b2)
}"""


def weights() -> dict[str, Any]:
    return {
        **{"w1": normal(INPUTS, HIDDEN), "b1": normal(HIDDEN, seed=1)},
        **{"w2": normal(OUTPUTS, HIDDEN, seed=2), "b2": normal(OUTPUTS, seed=3)},
    }


def layers(rows: int | str = "n") -> ir.Model:
    return graph(LAYERS.replace("ROWS", str(rows)), **weights())


def emulated() -> AbstractContextManager[None]:
    return device_code_by(lambda source, _: cuda_emulation.compile(source, EMULATED_HEADERS))


def compiled(model: ir.Model, folder: Path, target: str = TARGET, **options: Any) -> Session:
    with emulated():
        return undense.compile(
            ir.to_proto(model), target=target, scheme="dense", with_onnx=False, output=folder,
            **options,
        )  # fmt: skip


def x_of(rows: int, dtype: str = "float32") -> np.ndarray:
    return normal(rows, INPUTS, seed=rows).astype(dtype)


def check(x: np.ndarray, y: np.ndarray) -> None:
    """Fails unless y is what the layers make of x, but for rounding to its type."""
    dtype = y.dtype.name
    held = {name: value.astype(dtype).astype(np.float64) for name, value in weights().items()}
    hidden = np.maximum(x.astype(np.float64) @ held["w1"] + held["b1"], 0)
    exact = hidden @ held["w2"].T + held["b2"]
    bound = ROUNDINGS * float(ml_dtypes.finfo(dtype).eps) / 2 * np.linalg.norm(exact)
    assert y.shape == exact.shape
    assert np.linalg.norm(y.astype(np.float64) - exact) <= bound


@pytest.fixture(autouse=True)
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulated device, and cuBLAS for it alone, where a test is not for a real GPU."""
    if request.node.get_closest_marker("gpu") is None:
        request.getfixturevalue("cuda_device")
        monkeypatch.setattr(cublas, "_NAMES", (str(cublas_library()),))
        emulated_cublas.taken()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cublas") / "layers.undense"


@pytest.fixture
def session(folder: Path) -> Session:
    return load(folder) if folder.exists() else compiled(layers(), folder)


@pytest.mark.parametrize("dtype", list(TYPES))
def test_few_rows_take_the_kernel_and_many_take_cublas(dtype: str, tmp_path: Path) -> None:
    options = {} if dtype == "float32" else {"dtype": dtype}
    session = compiled(layers(), tmp_path / "layers.undense", **options)
    for rows in (0, 1, 8, 16):
        x = x_of(rows, dtype)
        check(x, session(x))
        assert emulated_cublas.taken() == []
    for rows in (17, 64, 130):
        x = x_of(rows, dtype)
        check(x, session(x))
        found = emulated_cublas.taken()
        assert [(p.rows, p.outputs, p.inputs) for p in found] == [
            (rows, HIDDEN, INPUTS),
            (rows, OUTPUTS, HIDDEN),
        ]
        assert {(p.stream, p.type) for p in found} == {(0, TYPES[dtype])}


def test_products_are_queued_on_the_stream_of_the_call(
    session: Session, cuda_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = int(cuda_device.create_raw_stream())
    for wanted in (stream, 0, stream):
        monkeypatch.setattr(tvm_session, "stream_of", lambda _, wanted=wanted: wanted)
        check(x_of(20), session(x_of(20)))
        assert {product.stream for product in emulated_cublas.taken()} == {wanted}


def test_a_cuda_graph_replays_products_with_other_data(tmp_path: Path) -> None:
    session = compiled(layers(20), tmp_path / "graph.undense", use_cuda_graph=True)
    before = cuda_emulation.graph_launches()
    for seed in range(3):
        x = normal(20, INPUTS, seed=seed)
        check(x, session(x))
    assert cuda_emulation.graph_launches() > before
    found = [(product.inputs, product.stream != 0) for product in emulated_cublas.taken()]
    # The first layer reads the input, which lies elsewhere in each call. The second is launched
    # by itself once, captured on a stream of its own, and then a part of the graph.
    first, second, captured = (INPUTS, False), (HIDDEN, False), (HIDDEN, True)
    assert found == [first, second, captured, first, first]


def test_threads_that_have_ended_leave_their_handles_to_others(session: Session) -> None:
    session(x_of(20))
    before = emulated_cublas.handles()
    for _ in range(3):
        thread = threading.Thread(target=lambda: session(x_of(20)))
        thread.start()
        number = thread.native_id
        thread.join()
        while Path(f"/proc/self/task/{number}").exists():  # what it leaves, it leaves at its end
            time.sleep(0.001)
    assert emulated_cublas.handles() == before + 1


def test_artifacts_share_handles(session: Session, tmp_path: Path) -> None:
    session(x_of(20))
    before = emulated_cublas.handles()
    session.save(tmp_path / "copy.undense")
    check(x_of(20), load(tmp_path / "copy.undense")(x_of(20)))
    assert emulated_cublas.handles() == before


def test_what_cublas_refuses_is_said_in_its_words(session: Session) -> None:
    emulated_cublas.fail(13)
    with pytest.raises(
        UndenseError,
        match=r"layers\.undense: tvm failed: .*multiply 20 rows of 40 inputs to 72 outputs: "
        r"the GPU program failed to execute \(status 13\)",
    ):
        session(x_of(20))
    check(x_of(20), session(x_of(20)))


def test_weights_are_stored_for_both(session: Session) -> None:
    names = session.manifest.parameters
    assert sum(name.endswith(".by_rows") for name in names) == 2
    assert sum(name.endswith(".fragments") for name in names) == 2
    assert session.manifest.target == TARGET


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No `cublas.so` is loaded yet, and no cuBLAS is on the machine."""
    monkeypatch.setattr(cublas, "_loaded", {})
    monkeypatch.setattr(cublas, "_NAMES", ("libnowhere.so.13",))
    return monkeypatch


def test_a_missing_cublas_is_named(session: Session, unopened: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MissingDependencyError,
        match=r"layers\.undense computes products by cuBLAS.*libnowhere\.so\.13.*"
        "pip install nvidia-cublas, or compile the model without -libs=cublas",
    ):
        load(session.path)


def test_compiling_needs_no_cublas(unopened: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = compiled(layers(), tmp_path / "layers.undense")
    with pytest.raises(MissingDependencyError, match="nvidia-cublas"):
        session(x_of(20))


@pytest.mark.parametrize("place", ["nvidia/cu13/lib", "nvidia/cublas/lib"])
def test_cublas_of_a_package_is_found(
    session: Session, unopened: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    library = tmp_path / place / "libnowhere.so.13"
    library.parent.mkdir(parents=True)
    shutil.copyfile(cublas_library(), library)
    unopened.syspath_prepend(tmp_path)
    assert load(session.path).engine == "tvm"


def test_a_library_that_is_not_cublas_is_named(
    session: Session, unopened: pytest.MonkeyPatch
) -> None:
    unopened.setattr(cublas, "_NAMES", ("libm.so.6",))
    with pytest.raises(MissingDependencyError, match="undefined symbol: cublasCreate_v2"):
        load(session.path)


def test_a_damaged_library_is_not_loaded(session: Session, tmp_path: Path) -> None:
    session.save(tmp_path / "copy.undense")
    with (tmp_path / "copy.undense" / CUBLAS).open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
    with pytest.raises(ArtifactError, match=r"cublas\.so is damaged: its sha256"):
        load(tmp_path / "copy.undense")


def test_a_library_that_is_none_is_named(session: Session, tmp_path: Path) -> None:
    from undense.runtime.artifact import write_artifact

    def fill(folder: Path) -> Any:
        for name in session.manifest.files:
            shutil.copyfile(session.path / name, folder / name)
        (folder / CUBLAS).write_bytes(b"none")
        return session.manifest

    copy = write_artifact(tmp_path / "copy.undense", fill)
    with pytest.raises(ArtifactError, match=r"copy\.undense/cublas\.so cannot be loaded"):
        load(copy.path)


@pytest.mark.parametrize(
    ("target", "text"),
    [("cuda -arch=sm_90", LAYERS), (TARGET, LAYERS.split("up =")[0] + "y = Relu(x)\n}")],
)
def test_what_calls_no_cublas_has_no_library(target: str, text: str, tmp_path: Path) -> None:
    text = text.replace("ROWS", "n")
    model = graph(text, **weights()) if "w1" in text else graph(text.replace("24", "40"))
    session = compiled(model, tmp_path / "layers.undense", target=target)
    assert CUBLAS not in session.manifest.files
    session(x_of(40))
    assert emulated_cublas.taken() == []


def test_without_a_compiler_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undense.backend.cuda import cublas as builder

    monkeypatch.setattr(builder, "find_cpp_compiler", lambda: None)
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not to be read")
    with pytest.raises(MissingDependencyError, match=r"-libs=cublas needs a C\+\+ compiler"):
        undense.compile(model, target=TARGET)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TYPES))
def test_real_products_by_cublas(dtype: str, tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    options = {} if dtype == "float32" else {"dtype": dtype}
    session = undense.compile(
        ir.to_proto(layers()), target="cuda -libs=cublas", scheme="dense",
        output=tmp_path / "layers.undense", **options,
    )  # fmt: skip
    assert CUBLAS in session.manifest.files
    for rows in (1, 16, 17, 500):
        x = x_of(rows, dtype)
        check(x, session(x))
