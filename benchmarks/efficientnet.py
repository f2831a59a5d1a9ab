"""EfficientNet-lite0: agreement with the dense model on 105 images, size and speed."""

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
from .models import efficientnet
from .script import Feed, Subject, run
from .workbench import Variant

SCHEMES = (
    "int_codes{bits=8,group=32}",
    "int_codes{bits=4,group=32}",
    "trit_planes{planes=3,group=32}",
    "trit_planes{planes=2,group=32}",
    "low_rank{ratio=0.75}",
    "monarch{ratio=0.75}",
)
ROUNDED = ("int_codes{bits=8,group=32,activations=int8}",)
"""With activations rounded to int8 in both engines."""


class EfficientNetLite0(Subject):
    """Calibrated on half of the photographs; scored on all 105 images and on the other half."""

    name = "efficientnet"

    def __init__(self, quick: bool) -> None:
        self._quick = quick
        held_out = {item.path for item in efficientnet.split()[1]}
        chosen = data.images()[:10] if quick else data.images()
        self._images = efficientnet.read(chosen)
        self._held_out = np.array([item.path in held_out for item in chosen])
        self._dense: NDArray[np.float32] | None = None
        self.variants = [
            Variant("auto", calibrated=True),
            *(Variant(scheme, calibrated) for scheme in SCHEMES for calibrated in (False, True)),
            *(Variant(scheme, calibrated=True) for scheme in ROUNDED),
        ]

    def capture(self) -> ir.Model:
        """The batch stays symbolic."""
        model, args = efficientnet.load(), efficientnet.example_args()
        return capture(model, args, efficientnet.dynamic_shapes())

    def example(self) -> Feed:
        """One photograph."""
        return efficientnet.calibration()[0]

    def calibration(self) -> Sequence[Feed]:
        """55 images of 11 photographs."""
        return efficientnet.calibration()[: 8 if self._quick else None]

    def timed(self) -> Mapping[str, Feed]:
        """One image."""
        return {"1x224x224": {"image": self._images[:1]}}

    def score(self, session: Session) -> dict[str, float]:
        """Top-1 agreement and divergence, and the relative error of the logits."""
        logits = efficientnet.classify(session, self._images, batch_size=5)
        if self._dense is None:
            self._dense = logits
        every = metrics.fidelity(logits, self._dense)
        held_out = metrics.fidelity(logits[self._held_out], self._dense[self._held_out])
        return {
            "top1_agreement": every.top1_agreement,
            "kl": every.kl,
            "top1_agreement_held_out": held_out.top1_agreement,
            "output_error": relative_error(logits, self._dense),
        }


if __name__ == "__main__":
    sys.exit(run(EfficientNetLite0))
