"""A PyTorch encoder, compiled with calibration and called as before."""

from __future__ import annotations

import torch
import undense
from torch import nn


class Encoder(nn.Module):
    """Two layers of a standard Transformer encoder over token ids."""

    def __init__(self, vocabulary: int = 1000, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(
            nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=512, batch_first=True),
            nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=512, batch_first=True),
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids `[batch, tokens]` -> hidden states `[batch, tokens, width]`."""
        hidden: torch.Tensor = self.layers(self.embedding(ids))
        return hidden


def main() -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    samples = [torch.randint(0, 1000, (2, 32)) for _ in range(16)]

    module = undense.compile(
        model,
        args=(samples[0],),
        dynamic_shapes={"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}},
        target="ort-cpu",
        scheme=[
            {"match": "embedding.*", "scheme": "int_codes{bits=8}"},
            {"match": "*.linear1.*", "scheme": "trit_planes{planes=3,group=64}"},
            {"match": "*", "scheme": "int_codes{bits=8,group=64}"},
        ],
        calibration_dataset=samples,
    )

    ids = torch.randint(0, 1000, (4, 17))
    with torch.inference_mode():
        dense = model(ids)
    error = (module(ids) - dense).norm() / dense.norm()
    sizes = module.report["bytes"]
    print(f"{sizes['before']:,} bytes before, {sizes['after']:,} after, output error {error:.2%}")
    for site in module.report["sites"]:
        print(f"{site['name']:<40} {site['scheme']}")


if __name__ == "__main__":
    main()
