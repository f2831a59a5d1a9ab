"""Weights out of the tensors that the kernels read, in float64: written from the layout alone.

A tile is 16 outputs by 16 inputs, four tiles in a row make a chunk of 64 inputs. Lane `4 g + t` of
32 holds of tile j eight values, in four pairs of neighbouring inputs: from the input
`i = 16 t + 4 j` of the chunk on for the outputs g and g + 8, then from i + 2 on for both.

Codes are integers of `bits` bits, `offset` above what they mean. A lane's values of a chunk are
taken in pairs, the first in the lower half of a word, the second 16 bits higher:
2 bits    a word has two tiles, 8 bits apart, and of each four pairs, 2 bits apart
4 bits    a word has one tile, four pairs, 4 bits apart
8 bits    a word has two pairs of a tile, 8 bits apart; four words are stored side by side
odd       the lowest bits as above, then one word with a bit of every value: `4 · tile + pair`
What is stored side by side of a lane comes lane by lane. Scales stand by tile, group and output;
units, which all scales of an output are multiplied by, by tile and output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .spec import Weight

_LANES, _TILES, _CHUNK, _TILE = 32, 4, 64, 16


def unpacked(weight: Weight, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """`[blocks, width, depth]` in float64; a plain tensor as it is."""
    if weight.form == "plain":
        return tensors[0].double()
    if weight.form == "dense":
        return _matrix(_dense_lanes(tensors[0]), weight)
    codes, scales, unit = tensors
    rows = [
        _matrix(_code_lanes(codes[plane], weight.bits).double() - weight.offset, weight)
        * _scales(scales[plane].double() * unit.double().unsqueeze(-2), weight)
        for plane in range(weight.planes)
    ]
    return torch.stack(rows).sum(0)


def _dense_lanes(stored: torch.Tensor) -> torch.Tensor:
    """`[blocks, tiles, chunks, 1024]` -> `[blocks, tiles, chunks, 4 tiles, lanes, 8]`."""
    lead = stored.shape[:-1]
    if stored.element_size() == 4:
        # Eight values of 4 bytes are loaded as two halves, each of all lanes.
        halves = stored.reshape(*lead, _TILES, 2, _LANES, 4).transpose(-3, -2)
        return halves.reshape(*lead, _TILES, _LANES, 8).double()
    return stored.reshape(*lead, _TILES, _LANES, 8).double()


def _code_lanes(stored: torch.Tensor, bits: int) -> torch.Tensor:
    """`[blocks, tiles, chunks, words]` -> `[blocks, tiles, chunks, 4 tiles, lanes, 8]` codes."""
    sections = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 8: (4, 4)}[bits]
    words, start = [], 0
    for width in sections:
        part = stored[..., start * _LANES : (start + width) * _LANES]
        words.append(part.reshape(*stored.shape[:-1], _LANES, width))
        start += width
    lane = torch.cat(words, -1).long()
    tiles = []
    for tile in range(_TILES):
        pairs = []
        for pair in range(4):
            for half in range(2):
                even = bits - bits % 2
                number, shift = {
                    2: (tile // 2, 8 * (tile % 2) + 2 * pair),
                    4: (tile, 4 * pair),
                    8: (2 * tile + pair // 2, 8 * (pair % 2)),
                }[even]
                value = (lane[..., number] >> (shift + 16 * half)) & (2**even - 1)
                if bits % 2:
                    high = (lane[..., -1] >> (4 * tile + pair + 16 * half)) & 1
                    value = value + (high << even)
                pairs.append(value.to(torch.int16))
        tiles.append(torch.stack(pairs, -1))
    return torch.stack(tiles, -3)


def _matrix(lanes: torch.Tensor, weight: Weight) -> torch.Tensor:
    """`[blocks, tiles, chunks, 4 tiles, lanes, 8]` -> `[blocks, width, depth]`."""
    blocks, tiles, chunks = lanes.shape[:3]
    split = lanes.reshape(blocks, tiles, chunks, _TILES, 8, 4, 2, 2, 2)
    # blocks, tile, chunk, j, g, t, pair, side, value -> blocks, tile, side, g, chunk, t, j, ...
    rows = split.permute(0, 1, 7, 4, 2, 5, 3, 6, 8)
    found = rows.reshape(blocks, tiles * _TILE, chunks * _CHUNK)
    return found[:, : weight.width, : weight.depth]


def _scales(stored: torch.Tensor, weight: Weight) -> torch.Tensor:
    """`[blocks, tiles, groups, 16]` -> `[blocks, width, depth]`."""
    blocks, tiles, groups, _ = stored.shape
    rows = stored.transpose(-1, -2).reshape(blocks, tiles * _TILE, groups)
    spread = rows.repeat_interleave(weight.group, -1)
    return spread[:, : weight.width, : weight.depth]
