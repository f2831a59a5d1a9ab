"""MiniLM-L6: size, similarity scores, output error and speed of every structure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from undense.frontend.load import load as capture
from undense.runtime.compare import relative_error
from undense.runtime.session import Session

from . import data, metrics
from .models import minilm
from .script import Feed, Subject, run
from .workbench import Variant

EMBEDDINGS = ("embeddings.*",)
SCHEMES = (
    "int_codes{bits=8,group=64}",
    "int_codes{bits=4,group=64}",
    "trit_planes{planes=3,group=64}",
    "trit_planes{planes=2,group=64}",
    "low_rank{ratio=0.75}",
    "low_rank{ratio=0.5}",
    "monarch{ratio=0.75}",
    "monarch{ratio=0.5}",
)
ROUNDED = (
    "int_codes{bits=8,group=128,activations=int8}",
    "int_codes{bits=4,group=128,activations=int8}",
)
"""With activations rounded to int8 in both engines."""
ERROR_LINES = 64


class MiniLM(Subject):
    """The word embedding stays dense in all rows but `auto`, so that rows compare the linears."""

    name = "minilm"

    def __init__(self, quick: bool) -> None:
        self._quick = quick
        self._tokens = minilm.tokenizer()
        self._dense: NDArray[np.float32] | None = None
        calibrated = (False, True)
        self.variants = [
            Variant("auto", calibrated=True),
            *(
                Variant(scheme, flag, ignored=EMBEDDINGS)
                for scheme in SCHEMES
                for flag in calibrated
            ),
            *(Variant(scheme, calibrated=True, ignored=EMBEDDINGS) for scheme in ROUNDED),
        ]

    def capture(self) -> ir.Model:
        """Batch and tokens stay symbolic."""
        return capture(minilm.load(), minilm.example_args(), minilm.dynamic_shapes())

    def example(self) -> Feed:
        """A line of the calibration text."""
        return minilm.calibration(1)[0]

    def calibration(self) -> Sequence[Feed]:
        """256 lines, about 26,000 tokens."""
        return minilm.calibration(16 if self._quick else 256)

    def timed(self) -> Mapping[str, Feed]:
        """One sentence of 128 tokens, and a batch of eight."""
        batches = (1,) if self._quick else (1, 8)
        return {f"{batch}x128": _feed(batch, 128) for batch in batches}

    def score(self, session: Session) -> dict[str, float]:
        """Both similarity sets, and the relative error of hidden states on unseen text."""
        words = metrics.word_similarity(self._embedder(session), data.word_pairs())
        scores = {"wordsim353_spearman": words.spearman}
        if not self._quick:
            documents = metrics.document_similarity(self._embedder(session), data.document_pairs())
            scores["lee50_pearson"] = documents.pearson
            scores["lee50_spearman"] = documents.spearman
        hidden = self._hidden_states(session)
        if self._dense is None:
            self._dense = hidden
        return scores | {"output_error": relative_error(hidden, self._dense)}

    def _embedder(self, session: Session) -> metrics.Embed:
        return lambda texts: minilm.embed(session, self._tokens, texts)

    def _hidden_states(self, session: Session) -> NDArray[np.float32]:
        lines = [line for line in data.evaluation_text().split("\n") if len(line) > 80]
        feeds = (minilm.encode(self._tokens, [line]) for line in lines[:ERROR_LINES])
        return np.concatenate([session(*feed)[0] for feed in feeds])


def _feed(batch: int, tokens: int) -> Feed:
    ids, _ = minilm.example_args(batch, tokens)
    return {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())}


if __name__ == "__main__":
    sys.exit(run(MiniLM))
