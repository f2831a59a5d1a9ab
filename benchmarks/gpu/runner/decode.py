"""`DecodeStep`: the dense model of the decode cases as a torch module, one token at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .reference import rotated


class _Layer(nn.Module):
    """Attention over a full cache of fixed length, and a gated feed-forward network."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, facts: Mapping[str, Any], length: int) -> None:
        super().__init__()
        hidden, size, inner = facts["hidden"], facts["size"], facts["inner"]
        heads, shared = facts["heads"], facts["shared"]
        self.size, self.heads, self.shared = size, heads, shared
        self.attention_norm = nn.RMSNorm(hidden, facts["epsilon"])
        self.feed_forward_norm = nn.RMSNorm(hidden, facts["epsilon"])
        self.query = nn.Linear(hidden, heads * size, bias=False)
        self.key = nn.Linear(hidden, shared * size, bias=False)
        self.value = nn.Linear(hidden, shared * size, bias=False)
        self.output = nn.Linear(heads * size, hidden, bias=False)
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)
        self.register_buffer("keys", torch.zeros(1, shared, length, size))
        self.register_buffer("values", torch.zeros(1, shared, length, size))

    def forward(
        self,
        x: torch.Tensor,
        position: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
    ) -> torch.Tensor:
        """X `[1, 1, hidden]`."""
        h = self.attention_norm(x)
        query = rotated(self.query(h).reshape(1, self.heads, 1, self.size), cosine, sine)
        key = rotated(self.key(h).reshape(1, self.shared, 1, self.size), cosine, sine)
        keys = self.keys.index_copy_(2, position, key)
        values = self.values.index_copy_(
            2, position, self.value(h).reshape(1, self.shared, 1, self.size)
        )
        attended = functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        x = x + self.output(attended.reshape(1, 1, -1))
        h = self.feed_forward_norm(x)
        down: torch.Tensor = self.down(functional.silu(self.gate(h)) * self.up(h))
        return x + down


class DecodeStep(nn.Module):
    """Logits of the next token; the head shares its matrix with the embedding.

    It is for the last place of the cache alone: all others are taken to be filled, so that
    attention needs no mask and torch can choose its fastest kernel.
    """

    cosines: torch.Tensor
    sines: torch.Tensor

    def __init__(
        self, facts: Mapping[str, Any], length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                self.embedding = nn.Embedding(facts["vocabulary"], facts["hidden"])
                self.layers = nn.ModuleList(_Layer(facts, length) for _ in range(facts["layers"]))
                self.norm = nn.RMSNorm(facts["hidden"], facts["epsilon"])
                angles = torch.randn(length, facts["size"] // 2)
                self.register_buffer("cosines", angles.cos())
                self.register_buffer("sines", angles.sin())
        finally:
            torch.set_default_dtype(before)

    def forward(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """`[1, 1, vocabulary]` for one token at a position."""
        x = self.embedding(token)[None]
        cosine, sine = self.cosines[position], self.sines[position]
        for layer in self.layers:
            x = layer(x, position, cosine, sine)
        return functional.linear(self.norm(x), self.embedding.weight)
