"""One kernel at one number of rows: its candidates beside the rule's own, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .gpu import Call, DeviceError, Gpu, Json, Kernel, imported_torch

CODE = "code"
"""Folder of the code."""

_SAMPLE = 3e-4
"""Seconds that a sample lasts at least."""

_MOST_CALLS = 512
"""Of a sample: they are nodes of one graph."""

_BEYOND = 3
"""Inputs take so many times the size of the cache, so that none of them is found there."""

_TOLERANCE = 1e-4
"""Relative difference of two orders of summation at most; a wrong kernel is further off."""

_ROUNDINGS = 8
"""The same of types that round more coarsely."""


class Product:
    """One kernel at one number of rows, with sets of inputs beyond the size of the cache."""

    def __init__(self, gpu: Gpu, folder: Path, described: Json, seed: int) -> None:
        torch = imported_torch()
        self._gpu, self._folder, self._described = gpu, folder, described
        self._rows = int(described["rows"])
        generator = torch.Generator(gpu.device)
        generator.manual_seed(seed)
        first = {item["name"]: self._filled(item, generator) for item in described["arguments"]}
        size = sum(tensor.numel() * tensor.element_size() for tensor in first.values())
        wanted = min(-(-_BEYOND * gpu.cache_bytes // size) + 1, _MOST_CALLS)
        count = max(1, min(wanted, gpu.free_bytes // (2 * size)))
        copies = [{name: t.clone() for name, t in first.items()} for _ in range(count - 1)]
        self._sets = [first, *copies]
        (self._output,) = [item["name"] for item in described["arguments"] if item["output"]]
        self._default = self._load(0)
        self._expected = self._run(self._default)
        if not float(self._expected.abs().max()) > 0:
            raise DeviceError("the rule's own kernel gives zeros, or what is no number")
        once = gpu.seconds(self._default.bound(first, self._rows))
        turns = -(-max(round(_SAMPLE / max(once, 1e-7)), 1) // count)
        self._calls = [self._sets[i % count] for i in range(min(turns * count, _MOST_CALLS))]
        self._own = self._sample(self._default)

    def compare(self, number: int, samples: int) -> Json | None:
        """A candidate beside the rule's kernel; None where its outputs are others."""
        candidate = self._load(number)
        if not _same(self._run(candidate), self._expected, self._precision):
            candidate.unload()
            return None
        sample = self._sample(candidate)
        pairs = [[self._gpu.seconds(s) for s in (sample, self._own)] for _ in range(samples)]
        del sample  # a graph of launches of what is unloaded now
        candidate.unload()
        ratios = [mine / own for mine, own in pairs]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
        mine, own = (1e6 * seconds / len(self._calls) for seconds in medians)
        return {
            "candidate": number,
            "samples": samples,
            "median_us": mine,
            "default_us": own,
            "ratio": statistics.median(ratios),
            "spread": high - low,
        }

    def _load(self, number: int) -> Kernel:
        described = self._described["candidates"][number]
        return Kernel(self._gpu, self._folder / CODE / described["code"], described)

    def _run(self, kernel: Kernel) -> Any:
        """Its output for the first set, in float32."""
        tensors = self._sets[0]
        tensors[self._output].zero_()
        kernel.bound(tensors, self._rows)()
        self._gpu.synchronize()
        return tensors[self._output].float().clone()

    @property
    def _precision(self) -> float:
        torch = imported_torch()
        return float(torch.finfo(self._sets[0][self._output].dtype).eps)

    def _sample(self, kernel: Kernel) -> Call:
        calls = [kernel.bound(tensors, self._rows) for tensors in self._sets]
        count = len(calls)
        sample = self._gpu.captured([calls[i % count] for i in range(len(self._calls))])
        sample()
        self._gpu.synchronize()
        return sample

    def _filled(self, item: Mapping[str, Any], generator: Any) -> Any:
        """Normal floats, any codes; x is small enough for sums to be numbers of float16."""
        torch = imported_torch()
        dtype, shape = getattr(torch, item["dtype"]), item["shape"]
        if item["output"]:
            return torch.zeros(shape, dtype=dtype, device=self._gpu.device)
        if not dtype.is_floating_point:
            limits = torch.iinfo(dtype)
            return torch.randint(
                limits.min, limits.max, shape, dtype=dtype, generator=generator,
                device=self._gpu.device,
            )  # fmt: skip
        normal = torch.randn(shape, generator=generator, device=self._gpu.device)
        return (normal * item["scale"]).to(dtype)


def _same(mine: Any, own: Any, precision: float) -> bool:
    torch = imported_torch()
    finite = torch.isfinite(own)
    relative = max(_TOLERANCE, _ROUNDINGS * precision)
    largest = float(own[finite].abs().max())
    return bool(torch.allclose(mine, own, rtol=0, atol=relative * largest, equal_nan=True))
