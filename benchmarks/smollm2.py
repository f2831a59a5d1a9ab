"""SmolLM2-135M: perplexity as loss against the dense model, size, and speed of both phases."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from undense.frontend.load import load as capture
from undense.runtime.compare import relative_error
from undense.runtime.session import Session

from . import data, metrics
from .models import smollm2
from .script import Feed, Subject, run
from .workbench import Variant

EMBEDDING = "embedding.weight"
"""Tied to the head: one weight, gathered and multiplied."""
SCHEMES = (
    "int_codes{bits=8,group=64}",
    "trit_planes{planes=3,group=64}",
    "trit_planes{planes=2,group=64}",
)
EMBEDDING_SCHEME = "int_codes{bits=8,group=64}"
ROUNDED = "int_codes{bits=4,group=64,activations=int8}"
ROUNDED_EMBEDDING = "int_codes{bits=8,group=64,activations=int8}"
"""With activations rounded to int8 in both engines."""
WINDOWS = 10


class SmolLM2(Subject):
    """Blocks in each scheme, with the embedding and head dense, and in 8-bit codes."""

    name = "smollm2"

    def __init__(self, quick: bool) -> None:
        self._quick = quick
        self._layers = 2 if quick else smollm2.LAYERS
        windows = 1 if quick else WINDOWS
        ids = smollm2.tokenizer().encode(data.evaluation_text()).ids
        self._ids = ids[: windows * metrics.WINDOW]
        self._dense: metrics.Perplexity | None = None
        self._dense_logits: NDArray[np.float32] | None = None
        self.variants = [
            Variant(scheme, calibrated, rules=rules, ignored=() if rules else (EMBEDDING,))
            for rules in ((), ((EMBEDDING, EMBEDDING_SCHEME),))
            for scheme in SCHEMES
            for calibrated in (False, True)
        ] + [Variant(ROUNDED, calibrated=True, rules=((EMBEDDING, ROUNDED_EMBEDDING),))]

    def capture(self) -> ir.Model:
        """Batch, tokens and past stay symbolic."""
        model = smollm2.load(self._layers)
        args = smollm2.example_args(layers=self._layers)
        return capture(model, args, smollm2.dynamic_shapes(self._layers))

    def example(self) -> Feed:
        """64 tokens of the calibration text without past."""
        window = self.calibration()[0]
        return {**window, "input_ids": window["input_ids"][:, :64]}

    def calibration(self) -> Sequence[Feed]:
        """4,096 tokens in windows of 512 without past."""
        return smollm2.calibration(512 if self._quick else 4096, self._layers)

    def timed(self) -> Mapping[str, Feed]:
        """A prompt of 128 tokens, and one token after 128."""
        shapes = {"prefill 1x128": (1, 128, 0), "decode 1x1 past 128": (1, 1, 128)}
        return {label: self._feed(*shape) for label, shape in shapes.items()}

    def score(self, session: Session) -> dict[str, float]:
        """Perplexity, and the loss against dense: nats a token, agreement and divergence."""
        found = metrics.perplexity(lambda ids: self._logits(session, ids), self._ids)
        logits = self._logits(session, np.array([self._ids[: metrics.WINDOW]]))
        if self._dense is None or self._dense_logits is None:
            self._dense, self._dense_logits = found, logits
        fidelity = metrics.fidelity(logits, self._dense_logits)
        return {
            "perplexity": found.value,
            "loss_nats": math.log(found.value / self._dense.value),
            "top1_agreement": fidelity.top1_agreement,
            "kl": fidelity.kl,
            "output_error": relative_error(logits, self._dense_logits),
        }

    def _logits(self, session: Session, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        feed = {"input_ids": ids} | smollm2.empty_cache(ids.shape[0], self._layers)
        logits: NDArray[np.float32] = session.run(feed)["logits"]
        return logits

    def _feed(self, batch: int, tokens: int, past: int) -> Feed:
        ids, cache = smollm2.example_args(batch, tokens, past, layers=self._layers)
        past_feed = {f"past_{name}": part.numpy() for name, part in cache.items()}
        return {"input_ids": ids.numpy()} | past_feed


if __name__ == "__main__":
    sys.exit(run(SmolLM2))
