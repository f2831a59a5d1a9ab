"""Which device an artifact runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
from artifacts import make_artifact
from undense.passes.errors import ArtifactError, TargetError
from undense.runtime.artifact import Artifact, Device, Engine, Manifest, open_artifact
from undense.runtime.device import resolve


def made_for(folder: Path, engine: Engine, device: Device, *, onnx: bool = True) -> Artifact:
    return make_artifact(folder / f"{engine}-{device}", engine, onnx=onnx, device=device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("engine", ["tvm", "ort"])
def test_the_device_of_the_artifact_is_the_default(
    engine: Engine, device: Device, tmp_path: Path
) -> None:
    assert resolve(made_for(tmp_path, engine, device), None) == device


@pytest.mark.parametrize("wanted", ["cpu", "cuda"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_of_onnx_runtime_runs_on_either(
    device: Device, wanted: Device, tmp_path: Path
) -> None:
    assert resolve(made_for(tmp_path, "ort", device), wanted) == wanted
    assert resolve(made_for(tmp_path, "tvm", device), wanted, "ort") == wanted


@pytest.mark.parametrize(
    ("device", "wanted", "target"), [("cpu", "cuda", "cuda"), ("cuda", "cpu", "llvm")]
)
def test_a_module_of_tvm_runs_on_its_own(
    device: Device, wanted: Device, target: str, tmp_path: Path
) -> None:
    artifact = made_for(tmp_path, "tvm", device)
    assert resolve(artifact, device) == device
    with pytest.raises(TargetError, match=f"for target {target}, or load it with engine ort$"):
        resolve(artifact, wanted)
    alone = made_for(tmp_path / "alone", "tvm", device, onnx=False)
    with pytest.raises(TargetError, match=f"for target {target}$"):
        resolve(alone, wanted)


def test_other_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="device 'gpu' is not known; there are 'cpu' and 'cuda'"):
        resolve(made_for(tmp_path, "ort", "cpu"), "gpu")


def test_the_manifest_keeps_the_device(tmp_path: Path) -> None:
    artifact = made_for(tmp_path, "ort", "cuda")
    assert open_artifact(artifact.path).manifest.device == "cuda"


def test_manifests_without_a_device_are_for_cpus(tmp_path: Path) -> None:
    text = made_for(tmp_path, "ort", "cpu").manifest.to_json()
    older = text.replace('  "device": "cpu",\n', "")
    assert older != text
    assert Manifest.from_json(older, "manifest.json").device == "cpu"


def test_a_manifest_with_another_device_is_damaged(tmp_path: Path) -> None:
    text = made_for(tmp_path, "ort", "cpu").manifest.to_json()
    with pytest.raises(ArtifactError, match="device 'tpu' is not known"):
        Manifest.from_json(text.replace('"device": "cpu"', '"device": "tpu"'), "manifest.json")
