"""Whole models: TVM's error against float64 is at most four times that of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from relax_models import compile_model, run, run_ort
from torch import Tensor, nn
from torch.nn import functional as F
from undense.backend.reference import run_reference

WIDTH, HEADS, KEY_HEADS, VOCABULARY = 32, 4, 2, 60
HEAD = WIDTH // HEADS
# torch's own exporter keeps Attention and RMSNormalization from opset 23 on; it warns of itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
]
RNG = np.random.default_rng(0)
BATCH = torch.export.Dim("batch", min=1, max=8)
SEQ = torch.export.Dim("seq", min=1, max=24)
PAST = torch.export.Dim("past", min=0, max=24)


def hold(model: ir.Model, many: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Both engines and numpy in float64 on the same file."""
    module, proto = compile_model(model), ir.to_proto(model)
    for feeds in many:
        expected = list(run_reference(model, feeds).values())
        engines = run(module, feeds), run_ort(proto, feeds)
        for tvm_output, ort_output, wanted in zip(*engines, expected, strict=True):
            assert tvm_output.shape == ort_output.shape == wanted.shape
            if wanted.size == 0:
                continue
            ours, theirs = (
                np.abs(output - wanted).max() / np.abs(wanted).max()
                for output in (tvm_output, ort_output)
            )
            assert ours <= 4 * max(theirs, np.finfo(np.float32).eps)


def exported(
    module: nn.Module, args: tuple[Any, ...], dynamic: Any, names: list[str], opset: int
) -> ir.Model:
    program = torch.onnx.export(
        module.eval(),
        args,
        dynamo=True,
        dynamic_shapes=dynamic,
        input_names=names,
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    return program.model


class Encoder(nn.Module):
    """Two layers of a BERT: learned positions, post-norm, GELU, a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(24, WIDTH))
        self.layers = nn.ModuleList(nn.ModuleList(self._layer()) for _ in range(2))

    @staticmethod
    def _layer() -> list[nn.Module]:
        projections = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
        inner = [nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)]
        return [*projections, *inner, nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.positions[: ids.shape[1]]
        keep = mask[:, None, None, :].bool().expand(-1, 1, ids.shape[1], -1)
        for query, key, value, output, wide, narrow, first, second in self.layers:
            q, k, v = (split(f(x), HEADS) for f in (query, key, value))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
            x = first(x + output(y.transpose(1, 2).reshape(x.shape)))
            x = second(x + narrow(F.gelu(wide(x))))
        return x


class Decoder(nn.Module):
    """Two layers of a Llama: RMS norms, rotary positions, shared key heads, SwiGLU, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.ModuleList(self._layer()) for _ in range(2))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)

    @staticmethod
    def _layer() -> list[nn.Module]:
        shared = KEY_HEADS * HEAD
        shapes = [(WIDTH, WIDTH), (WIDTH, shared), (WIDTH, shared), (WIDTH, WIDTH)]
        shapes += [(WIDTH, 64), (WIDTH, 64), (64, WIDTH)]
        linears = [nn.Linear(*shape, bias=False) for shape in shapes]
        return [*linears, nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)]

    def forward(self, ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        start, length = past[0].shape[2], past[0].shape[2] + ids.shape[1]
        positions = torch.arange(start, length)
        seen = torch.arange(length)[None] <= positions[:, None]
        mask = torch.where(seen, 0.0, -1e9)
        angles = positions[:, None] * 10.0 ** -(torch.arange(0, HEAD, 2) / HEAD)
        x, present = self.words(ids), []
        for index, layer in enumerate(self.layers):
            query, key, value, output, gate, up, down, first, second = layer
            y = first(x)
            q, k, v = split(query(y), HEADS), split(key(y), KEY_HEADS), split(value(y), KEY_HEADS)
            k = torch.cat([past[2 * index], turned(k, angles)], 2)
            v = torch.cat([past[2 * index + 1], v], 2)
            present += [k, v]
            y = F.scaled_dot_product_attention(
                turned(q, angles), k, v, attn_mask=mask, enable_gqa=True
            )
            x = x + output(y.transpose(1, 2).reshape(x.shape))
            y = second(x)
            x = x + down(F.silu(gate(y)) * up(y))
        return (F.linear(self.norm(x), self.words.weight), *present)


def split(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, HEAD).transpose(1, 2)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
def test_encoder(opset: int):
    torch.manual_seed(0)
    args = (torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64))
    dynamic = ({0: BATCH, 1: SEQ}, {0: BATCH, 1: SEQ})
    model = exported(Encoder(), args, dynamic, ["ids", "mask"], opset)
    assert ("Attention" in {node.op_type for node in model.graph}) == (opset == 23)
    many = []
    for batch, seq in [(2, 7), (1, 1), (3, 24), (1, 5)]:
        mask = np.ones((batch, seq), np.int64)
        mask[-1, seq // 2 + 1 :] = 0
        many.append({"ids": RNG.integers(0, VOCABULARY, (batch, seq)), "mask": mask})
    hold(model, many)
    assert compile_model(model).dimension_bounds["seq"][1] == 24


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
def test_decoder_with_cache(opset: int):
    torch.manual_seed(0)
    names = ["ids", "k0", "v0", "k1", "v1"]
    past = [torch.zeros(2, KEY_HEADS, 5, HEAD) for _ in range(4)]
    args = (torch.ones(2, 3, dtype=torch.int64), *past)
    dynamic = ({0: BATCH, 1: SEQ}, tuple({0: BATCH, 2: PAST} for _ in past))
    model = exported(Decoder(), args, dynamic, names, opset)
    operators = {node.op_type for node in model.graph}
    assert ({"Attention", "RMSNormalization"} <= operators) == (opset == 23)
    many = [
        {"ids": RNG.integers(0, VOCABULARY, (batch, seq))}
        | {name: cache(batch, length) for name in names[1:]}
        for batch, seq, length in [(2, 3, 5), (1, 1, 0), (1, 1, 9), (3, 4, 0), (1, 17, 24)]
    ]
    hold(model, many)


def cache(batch: int, past: int) -> NDArray[np.float32]:
    return RNG.standard_normal((batch, KEY_HEADS, past, HEAD)).astype(np.float32)
