"""Artifacts are written whole or not at all, and nothing of a damaged one is used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from artifacts import REPORT_TEXT, make_artifact, manifest
from undense.passes.errors import ArtifactError
from undense.runtime.artifact import (
    MODEL,
    Manifest,
    TensorInfo,
    check_destination,
    open_artifact,
    write_artifact,
)


def fill_with(**texts: str):
    def fill(folder: Path) -> Manifest:
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text)
        return manifest("ort")

    return fill


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def test_what_is_written_is_read(tmp_path):
    written = make_artifact(tmp_path / "made" / "tiny.undense")
    read = open_artifact(tmp_path / "made" / "tiny.undense")
    assert read == written
    assert read.manifest.inputs[1].bounds == (0, 9)
    assert read.manifest.dimension_bounds == {"n": (0, 16)}
    assert read.engines == ("ort",)
    assert (read.path / "report.json").read_text() == REPORT_TEXT
    assert os.listdir(tmp_path / "made") == ["tiny.undense"]


def test_same_inputs_give_same_bytes(tmp_path):
    first, second = make_artifact(tmp_path / "a"), make_artifact(tmp_path / "b" / "c")
    names = sorted(item.name for item in first.path.iterdir())
    assert names == sorted(item.name for item in second.path.iterdir())
    for name in names:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
        assert str(tmp_path).encode() not in (first.path / name).read_bytes()


def test_the_folder_is_as_readable_as_the_users_own(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    assert make_artifact(tmp_path / "a").path.stat().st_mode == plain.stat().st_mode


def test_report_has_the_size_of_the_folder(tmp_path):
    artifact = make_artifact(tmp_path / "a")
    files = [item for item in artifact.path.iterdir() if item.name != "manifest.json"]
    assert artifact.report["bytes"]["folder"] == sum(item.stat().st_size for item in files)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"",
    ],
    ids=["one bit", "truncated", "longer", "empty"],
)
def test_damage_is_found_and_named(tmp_path, damage):
    path = make_artifact(tmp_path / "a").path / MODEL
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged: its sha256 is not that of"):
        open_artifact(tmp_path / "a")


def test_a_missing_file_is_named(tmp_path):
    make_artifact(tmp_path / "a")
    (tmp_path / "a" / MODEL).unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing; build the artifact again"):
        open_artifact(tmp_path / "a")


def test_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        open_artifact(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"no undense artifact: it has no manifest\.json"):
        open_artifact(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file; an undense artifact is a folder"):
        open_artifact(tmp_path / "file")
    for text in ("", "{", "[]", '{"name": "web app"}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ArtifactError, match="is not the manifest of an undense artifact"):
            open_artifact(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_artifact(tmp_path)


def test_another_format_version(tmp_path):
    make_artifact(tmp_path / "a")
    edit(tmp_path / "a", format_version=2)
    with pytest.raises(ArtifactError, match="format version 2, this undense reads 1: install"):
        open_artifact(tmp_path / "a")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", ".hidden", ""])
def test_file_names_cannot_leave_the_folder(tmp_path, name):
    make_artifact(tmp_path / "a")
    edit(tmp_path / "a", files={name: {"sha256": "0" * 64, "bytes": 0}})
    with pytest.raises(ArtifactError, match=r"is damaged .*no plain file name"):
        open_artifact(tmp_path / "a")


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": None},
        {"inputs": [{"name": "x", "dtype": "float32"}]},
        {"inputs": [{"name": "x", "dtype": "complex64", "shape": [], "bounds": None}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1], "bounds": None}]},
        {"inputs": [{"name": "x", "dtype": "int64", "shape": [], "bounds": [3, 2]}]},
        {"inputs": [{"name": "x", "dtype": "int64", "shape": [], "bounds": None}] * 2},
        {"outputs": []},
        {"engine": "cuda"},
        {"files": {"model.onnx": {"sha256": "short", "bytes": 1}}},
        {"files": {"model.onnx": {"sha256": 5, "bytes": 1}}},
        {"files": {"model.onnx": {"sha256": "0" * 64, "bytes": "1"}}},
        {"dimension_bounds": {"n": [1]}},
        {"execution_tolerance": {"sum": {"bound": "small", "derivation": ""}}},
        {"execution_tolerance": {"sum": {"bound": 1.0}}},
    ],
)
def test_damaged_fields_of_the_manifest(tmp_path, changes):
    make_artifact(tmp_path / "a")
    edit(tmp_path / "a", **changes)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        open_artifact(tmp_path / "a")


def test_a_tensor_without_a_known_dtype_is_not_written():
    with pytest.raises(ArtifactError, match="dtype 'float8_e4m3fn' is not supported"):
        TensorInfo("x", "float8_e4m3fn", ())


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_write_leaves_nothing(tmp_path, ending):
    def fill(folder: Path) -> Manifest:
        (folder / "half.txt").write_text("half")
        raise ending

    with pytest.raises(ending):
        write_artifact(tmp_path / "a", fill)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_artifact_before_it(tmp_path):
    def fill(folder: Path) -> Manifest:
        raise KeyboardInterrupt

    before = write_artifact(tmp_path / "a", fill_with(one="1"))
    with pytest.raises(KeyboardInterrupt):
        write_artifact(tmp_path / "a", fill)
    assert open_artifact(tmp_path / "a") == before
    assert os.listdir(tmp_path) == ["a"]


def half_written(folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A process that has written half of the artifact `a`, and where, an hour ago."""
    code = (
        "import sys, time, pathlib\n"
        "from undense.runtime.artifact import write_artifact\n"
        "def fill(folder):\n"
        "    (folder / 'half').write_text('half')\n"
        "    time.sleep(60)\n"
        "write_artifact(sys.argv[1], fill)\n"
    )
    pattern, others = ".a.*.partial/half", set(folder.glob(".a.*.partial/half"))
    process = subprocess.Popen([sys.executable, "-c", code, str(folder / "a")])
    deadline = time.monotonic() + 30
    while not (found := set(folder.glob(pattern)) - others) and time.monotonic() < deadline:
        time.sleep(0.02)
    partial = found.pop().parent
    hour_ago = time.time() - 3600
    os.utime(partial, (hour_ago, hour_ago))
    return process, partial


def test_what_a_killed_process_left_goes_and_what_another_one_writes_stays(tmp_path):
    killed, left = half_written(tmp_path)
    writing, kept = half_written(tmp_path)
    killed.kill()
    killed.wait(30)
    try:
        write_artifact(tmp_path / "a", fill_with(one="1"))
        assert not left.exists()
        assert (kept / "half").read_text() == "half"
    finally:
        writing.terminate()
        writing.wait(30)
    assert os.listdir(tmp_path) == ["a"]


def test_what_was_to_be_replaced_when_a_process_was_killed_is_put_back(tmp_path):
    before = write_artifact(tmp_path / "a", fill_with(one="1"))
    left = tmp_path / ".a.0badc0de.previous"
    before.path.rename(left)
    os.utime(left, (0, 0))

    def fill(folder: Path) -> Manifest:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_artifact(tmp_path / "a", fill)
    assert open_artifact(tmp_path / "a") == before
    assert os.listdir(tmp_path) == ["a"]


def test_termination_leaves_nothing(tmp_path):
    process, _ = half_written(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_an_artifact_is_replaced(tmp_path):
    write_artifact(tmp_path / "a", fill_with(one="1", two="2"))
    write_artifact(tmp_path / "a", fill_with(three="3"))
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest.json", "three.txt"]
    assert os.listdir(tmp_path) == ["a"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    write_artifact(tmp_path / "a", fill_with(one="1"))
    assert open_artifact(tmp_path / "a").file("one.txt").read_text() == "1"


def test_what_is_no_artifact_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    (tmp_path / "notes").write_text("note")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for name, cause in {"photos": "no undense artifact", "notes": "a file", "link": "link"}.items():
        with pytest.raises(ArtifactError, match=cause):
            check_destination(tmp_path / name)
        with pytest.raises(ArtifactError, match=cause):
            write_artifact(tmp_path / name, fill_with(one="1"))
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "cat"
    assert (tmp_path / "notes").read_text() == "note"
    assert sorted(os.listdir(tmp_path)) == ["link", "notes", "photos"]


def test_a_file_of_the_users_in_an_artifact_is_not_deleted(tmp_path):
    write_artifact(tmp_path / "a", fill_with(one="1"))
    (tmp_path / "a" / "my_notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds my_notes\.txt, which is no part"):
        write_artifact(tmp_path / "a", fill_with(two="2"))
    assert (tmp_path / "a" / "my_notes.txt").read_text() == "mine"


def test_a_destination_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_artifact(tmp_path / "file" / "a", fill_with(one="1"))


def test_folders_inside_are_refused(tmp_path):
    def fill(folder: Path) -> Manifest:
        (folder / "sub").mkdir()
        return manifest("ort")

    with pytest.raises(ArtifactError, match="cannot be written"):
        write_artifact(tmp_path / "a", fill)
    assert os.listdir(tmp_path) == []


def test_a_copy_is_the_same(tmp_path):
    original = make_artifact(tmp_path / "a")
    copy = original.save(tmp_path / "deep" / "b")
    assert copy.manifest == original.manifest
    assert open_artifact(copy.path).manifest == original.manifest
    assert original.save(tmp_path / "a") is original


def test_a_damaged_artifact_is_not_copied(tmp_path):
    original = make_artifact(tmp_path / "a")
    (original.path / MODEL).write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged"):
        original.save(tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no module\.so"):
        make_artifact(tmp_path / "a").file("module.so")
