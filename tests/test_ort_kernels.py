"""The kernels of TVM inside ONNX Runtime: every structure, in sessions of ours and others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import undense
from graphs import graph, normal
from helpers import assert_close
from numpy.typing import NDArray
from undense.backend.ort_kernels import build, functions
from undense.cli import main
from undense.passes.errors import (
    ArtifactError,
    LoweringError,
    MissingDependencyError,
    TargetError,
)
from undense.passes.nodes import StructuredNode, structured_nodes
from undense.runtime import ort_session
from undense.runtime.artifact import KERNELS, MANIFEST, MODEL, open_artifact
from undense.runtime.verify import verify

Array = NDArray[Any]
IN_FEATURES, OUT_FEATURES, ROWS, WIDTH = 300, 40, 50, 70
SCHEMES = {
    "thin": "low_rank{rank=12}",
    "thin_bytes": "low_rank{rank=20,factor_bits=8}",
    "blocks": "monarch{in_blocks=2,out_blocks=4,ratio=0.5}",
    "bytes": "int_codes{bits=8,group=64,activations=float}",
    "nibbles": "int_codes{bits=4,group=32}",
    "three": "int_codes{bits=3,group=128}",
    "six": "int_codes{bits=6,group=128}",
    "tied": "trit_planes{planes=2}",
    "overload": "trit_planes{planes=3,activations=float}",
    "free": "trit_planes{planes=2,tied=false,pack=base3}",
    "mended": "int_codes{bits=4,group=64}+residual{rank=9}",
    "mended_planes": "trit_planes{planes=3,activations=float}+residual{rank=4}",
}
"""By weight; the default of ONNX Runtime is activations=int8."""
TABLE = "int_codes{bits=4,group=32}"
_LAUNCH = "__TVMBackendParallelLaunch"


def _model(seed: int = 0) -> ir.Model:
    """Every product of one x, and rows of a table, by two types of index, that one reads too."""
    products = "\n".join(f"y_{name} = MatMul (x, {name})" for name in SCHEMES)
    outputs = ", ".join(f"float[batch, tokens, {OUT_FEATURES}] y_{name}" for name in SCHEMES)
    weights = {
        name: normal(IN_FEATURES, OUT_FEATURES, seed=seed + number)
        for number, name in enumerate(SCHEMES)
    }
    return graph(
        f"""
        agraph (float[batch, tokens, {IN_FEATURES}] x, int32[batch, tokens] ids) =>
            ({outputs}, float[batch, tokens, {WIDTH}] rows,
             float[batch, tokens, {WIDTH}] same_rows, float[batch, tokens, {ROWS}] scores) {{
            {products}
            rows = Gather <axis = 0> (table, ids)
            wide = Cast <to = 7> (ids)
            same_rows = Gather <axis = 0> (table, wide)
            turned = Transpose <perm = [1, 0]> (table)
            scores = MatMul (rows, turned)
        }}
        """,
        table=normal(ROWS, WIDTH, seed=99),
        **weights,
    )


RULES = [
    *({"match": name, "scheme": scheme} for name, scheme in SCHEMES.items()),
    {"match": "table", "scheme": TABLE},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "m.undense"
    undense.compile(_model(), target="ort-cpu", kernels="tvm", scheme=RULES, output=path)
    return path


@pytest.fixture(scope="module")
def nodes(folder: Path) -> dict[str, StructuredNode]:
    found = structured_nodes(ir.load(folder / MODEL))
    return {str(node.node.outputs[0].name): node for node in found}


def _sample(*leading: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((*leading, IN_FEATURES)) * random.uniform(0.1, 10, (*leading, 1))
    ids = random.integers(0, ROWS, leading).astype(np.int32)
    return {"x": x.astype(np.float32), "ids": ids}


def _check(nodes: dict[str, StructuredNode], run: Any, sample: dict[str, Array]) -> None:
    """Each output against the reference of its node, on what the node was given."""
    found = run(sample)
    for name, node in nodes.items():
        if node.gathers:
            wanted = node.structure.reference_rows(node.factors(), sample["ids"], np.float32)
        else:
            x = (found["rows"] if name == "scores" else sample["x"]).astype(np.float64)
            wanted = node.structure.reference(node.factors(), x)
        assert_close(found[name], wanted, reduction=node.in_features)


def _stock(folder: Path, *libraries: Path, threads: int | None = None) -> Any:
    """`run(sample)` in a session of onnxruntime's own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("undense.num_threads", str(threads))
    for path in libraries:
        options.register_custom_ops_library(str(path))
    session = onnxruntime.InferenceSession(
        str(folder / MODEL), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return lambda sample: dict(zip(names, session.run(names, sample), strict=True))


def test_the_model_has_every_structure(nodes: dict[str, StructuredNode], folder: Path) -> None:
    assert {node.structure.kind for node in nodes.values()} == set(_kinds())
    assert any(node.gathers for node in nodes.values())
    overloads = {function.overload for function in onnx.load(folder / MODEL).functions}
    assert len(overloads) > 1


def _kinds() -> Iterator[str]:
    from undense.passes.structures import structures

    yield from structures()


@pytest.mark.parametrize("threads", [1, 2])
def test_every_structure_computes_what_the_reference_says(
    folder: Path, nodes: dict[str, StructuredNode], threads: int
) -> None:
    session = undense.load(folder, num_threads=threads)
    for leading in [(1, 1), (0, 3), (2, 3), (3, 11)]:
        _check(nodes, session.run, _sample(*leading))


def test_the_library_takes_the_place_of_the_functions(folder: Path, tmp_path: Path) -> None:
    for libraries in ((), (folder / KERNELS,)):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 4
        for path in libraries:
            options.register_custom_ops_library(str(path))
        onnxruntime.InferenceSession(
            str(folder / MODEL), options, providers=["CPUExecutionProvider"]
        )
        ran = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
        left = [node for node in ran if node.domain == "undense"]
        assert len(left) == (len(SCHEMES) + 3 if libraries else 0)


def test_onnx_runtime_needs_no_library(folder: Path, nodes: dict[str, StructuredNode]) -> None:
    _check(nodes, _stock(folder), _sample(2, 3))


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_the_library_can_be_registered_by_hand(
    folder: Path, nodes: dict[str, StructuredNode], threads: int | None
) -> None:
    _check(nodes, _stock(folder, folder / KERNELS, threads=threads), _sample(2, 3))


def test_memory_of_the_caller_may_have_any_alignment(
    folder: Path, nodes: dict[str, StructuredNode]
) -> None:
    sample = _sample(2, 3)
    shifted = np.empty(sample["x"].size + 1, np.float32)[1:].reshape(sample["x"].shape)
    shifted[:] = sample["x"]
    _check(nodes, _stock(folder, folder / KERNELS), {**sample, "x": shifted})


def test_several_sessions_and_threads_at_once(folder: Path) -> None:
    sessions = [undense.load(folder, num_threads=threads) for threads in (1, 2, 2)]
    samples = [_sample(2, 5, seed=seed) for seed in range(4)]
    wanted = [sessions[0].run(sample) for sample in samples]

    def run(task: int) -> None:
        for found, one in zip(
            (sessions[task % 3].run(sample) for sample in samples), wanted, strict=True
        ):
            for name, array in one.items():
                np.testing.assert_array_equal(found[name], array)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(12)))


def test_the_artifact_says_what_it_is(folder: Path) -> None:
    artifact = open_artifact(folder)
    assert artifact.manifest.kernels == artifact.report["kernels"] == "tvm"
    assert artifact.manifest.cpu_features
    assert artifact.engines == ("ort",)
    assert KERNELS in artifact.manifest.files
    loaded = sum((folder / name).stat().st_size for name in (MODEL, f"{MODEL}.data", KERNELS))
    sizes = artifact.report["bytes"]
    assert sizes["after"] + sizes["code"] == loaded
    graph = onnx.load(folder / MODEL, load_external_data=False).graph
    assert sizes["after"] > sum(np.prod(t.dims) for t in graph.initializer)
    assert artifact.report["layer_execution_error"] < 1e-5


def test_verbs_work_on_it(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert verify(folder).holds
    inputs = tmp_path / "in.npz"
    np.savez(inputs, allow_pickle=False, **_sample(1, 2))
    out = str(tmp_path / "out.npz")
    assert main(["run", str(folder), "--input", str(inputs), "--output", out]) == 0
    assert main(["bench", str(folder), "--repeats", "2", "--json"]) == 0
    assert main(["inspect", str(folder), "--json"]) == 0
    assert '"kernels": "tvm"' in capsys.readouterr().out


def test_it_can_be_moved_and_copied(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    sample = _sample(1, 4)
    wanted = undense.load(folder).run(sample)
    undense.load(folder).save(tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    found = undense.load("copy").run(sample)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_same_model_gives_the_same_library(tmp_path: Path) -> None:
    model = _small()
    for name in ("a.so", "b.so"):
        assert build(model, tmp_path / name)
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()


def _small(seed: int = 0, width: int = 48) -> ir.Model:
    """A rewritten model of one layer."""
    text = f"agraph (float[n, 64] x) => (float[n, {width}] y) {{ y = MatMul (x, w) }}"
    session = undense.compile(
        graph(text, w=normal(64, width, seed=seed)), target="ort-cpu", scheme="low_rank{rank=4}"
    )
    return ir.external_data.load_to_model(ir.load(session.artifact.file(MODEL)))


def test_a_library_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    build(_small(1), tmp_path / KERNELS)
    ir.save(_small(2), tmp_path / MODEL)
    with pytest.raises(Exception, match=r"no kernel for LowRank of w\.down; load the model and"):
        _stock(tmp_path, tmp_path / KERNELS)


def test_a_dense_model_needs_no_library(tmp_path: Path) -> None:
    text = "agraph (float[n, 64] x) => (float[n, 48] y) { y = MatMul (x, w) }"
    session = undense.compile(
        graph(text, w=normal(64, 48)), target="ort-cpu", kernels="tvm", scheme="dense"
    )
    assert session.manifest.kernels is None
    assert KERNELS not in session.manifest.files


def _edited(folder: Path, target: Path, **fields: Any) -> Path:
    shutil.copytree(folder, target)
    document = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps({**document, **fields}))
    return target


def test_a_library_for_another_processor_is_never_opened(folder: Path, tmp_path: Path) -> None:
    path = _edited(folder, tmp_path / "a", cpu_features=["avx2", "avx1024"])
    with pytest.raises(TargetError, match=r"avx1024.* lacks: compile the model again, or run"):
        undense.load(path)


def test_a_damaged_library_is_never_opened(folder: Path, tmp_path: Path) -> None:
    path = _edited(folder, tmp_path / "a")
    data = bytearray((path / KERNELS).read_bytes())
    data[len(data) // 2] ^= 1
    (path / KERNELS).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"kernels\.so is damaged"):
        undense.load(path)


def test_a_library_that_is_none_is_an_error_of_the_artifact(folder: Path, tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "a"
    data = b"not a library"
    files = json.loads((folder / MANIFEST).read_text())["files"]
    files[KERNELS] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    _edited(folder, path, files=files)
    (path / KERNELS).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"kernels\.so: onnxruntime .* cannot load it"):
        undense.load(path)


@pytest.mark.parametrize(
    ("target", "kernels", "message"),
    [
        ("ort-cpu", "mlas", "kernels 'mlas' is not known; there is 'tvm'"),
        ("llvm", "tvm", "kernels is for target ort-cpu, not for llvm; leave it out"),
    ],
)
def test_bad_options_are_refused(target: str, kernels: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        undense.compile("nothing.onnx", target=target, kernels=kernels)
    options = ["-o", "nothing", "--target", target, "--kernels", kernels]
    assert main(["compile", "nothing.onnx", *options]) == 2


def test_without_a_compiler_nothing_is_begun(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="kernels tvm need a C\\+\\+ compiler"):
        undense.compile(
            ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), target="ort-cpu", kernels="tvm"
        )


def test_code_that_wants_more_of_tvm_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(functions, "PROVIDED", functions.PROVIDED - {_LAUNCH})
    with pytest.raises(LoweringError, match=f"needs {_LAUNCH} of TVM's runtime"):
        build(_small(width=256), tmp_path / KERNELS)


def test_a_number_of_threads_is_a_number(folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(ort_session.THREADS_ENTRY, "many")
    with pytest.raises(Exception, match=r"undense\.num_threads is 'many'"):
        options.register_custom_ops_library(str(folder / KERNELS))
