"""Measures the kernels of this folder on the GPU of this machine: `python measure.py --help`.

It needs torch and NVIDIA's driver, and nothing else: no network, no compiler, no undense. Each
candidate is checked against the rule's own kernel, then takes turns with it. What was measured is
in results.json after each kernel; another run goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CANDIDATES, RESULTS, CODE = "candidates.json", "results.json", "code"

_BRIEF, _LONG, _LEFT = 5, 25, 3
"""Samples of each candidate and of each of the best, and how many of them are measured again."""

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

_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

Json = dict[str, Any]
Call = Callable[[], None]


def _torch() -> Any:
    import torch

    return torch


class DeviceError(Exception):
    """The driver refused something; says what."""


class CandidateError(Exception):
    """A candidate cannot be measured."""

    def __init__(self, candidate: int, cause: str) -> None:
        super().__init__(f"candidate {candidate} failed ({cause})")
        self.candidate = candidate


class _LaunchConfig(ctypes.Structure):
    """`CUlaunchConfig` of the driver."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z")),
        *((name, ctypes.c_uint) for name in ("block_x", "block_y", "block_z")),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class Gpu:
    """The GPU that torch uses: its memory and clock are torch's, its launches the driver's."""

    device = "cuda"

    def __init__(self) -> None:
        torch = _torch()
        if not torch.cuda.is_available():
            raise DeviceError("torch finds no GPU on this machine")
        torch.cuda.init()
        torch.zeros(1, device=self.device)  # makes its context that of this thread
        self.driver = ctypes.CDLL("libcuda.so.1")

    def facts(self) -> Json:
        """What the results say of the machine."""
        torch = _torch()
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        return {"gpu": name, "capability": f"{major}.{minor}", "torch": str(torch.__version__)}

    @property
    def cache_bytes(self) -> int:
        """Of the cache that all multiprocessors share."""
        torch = _torch()
        return int(torch.cuda.get_device_properties(0).L2_cache_size)

    @property
    def free_bytes(self) -> int:
        """Of its memory."""
        torch = _torch()
        return int(torch.cuda.mem_get_info()[0])

    @property
    def stream(self) -> int:
        """The one that launches go to; another one while a graph is captured."""
        torch = _torch()
        return int(torch.cuda.current_stream().cuda_stream)

    def synchronize(self) -> None:
        """Waits; raises what a kernel did wrong."""
        torch = _torch()
        torch.cuda.synchronize()

    def captured(self, calls: Sequence[Call]) -> Call:
        """All calls as one."""
        torch = _torch()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        replay: Call = graph.replay
        return replay

    def seconds(self, call: Call) -> float:
        """From before to behind it, on the device."""
        torch = _torch()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def check(self, status: int, what: str) -> None:
        """Raises where the driver returned an error."""
        if status:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorName(status, ctypes.byref(text))
            raise DeviceError(f"{what}: {(text.value or str(status).encode()).decode()}")


class Kernel:
    """One candidate, loaded."""

    def __init__(self, gpu: Gpu, code: Path, described: Mapping[str, Any]) -> None:
        self._gpu = gpu
        self._launch = described["launch"]
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        driver, shared = gpu.driver, int(self._launch["shared_bytes"])
        image = code.read_bytes()
        gpu.check(driver.cuModuleLoadData(ctypes.byref(self._module), image), "cuModuleLoadData")
        name = str(self._launch["kernel"]).encode()
        found = driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name)
        gpu.check(found, "cuModuleGetFunction")
        allowed = driver.cuFuncSetAttribute(self._function, _DYNAMIC_SHARED, shared)
        gpu.check(allowed, "cuFuncSetAttribute")

    def bound(self, tensors: Mapping[str, Any], rows: int) -> Call:
        """A launch on these tensors."""
        return _Launch(self._gpu, self._function, self._launch, tensors, rows)

    def unload(self) -> None:
        """Gives its memory back."""
        self._gpu.check(self._gpu.driver.cuModuleUnload(self._module), "cuModuleUnload")


class _Launch:
    """A launch with its arguments, which live as long as it does."""

    def __init__(
        self, gpu: Gpu, function: Any, launch: Mapping[str, Any], tensors: Mapping[str, Any],
        rows: int,
    ) -> None:  # fmt: skip
        self._gpu, self._function = gpu, function
        self._extents = [*launch["grid"], *launch["block"], launch["shared_bytes"]]
        self._values = [
            ctypes.c_int64(rows) if name == "rows" else ctypes.c_void_p(tensors[name].data_ptr())
            for name in launch["arguments"]
        ]
        places = [ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in self._values]
        self._pointers = (ctypes.c_void_p * len(places))(*places)

    def __call__(self) -> None:
        config = _LaunchConfig(*self._extents, self._gpu.stream, None, 0)
        launch = self._gpu.driver.cuLaunchKernelEx
        status = launch(ctypes.byref(config), self._function, self._pointers, None)
        self._gpu.check(status, "cuLaunchKernelEx")


class Product:
    """One kernel at one number of rows, with sets of inputs beyond the size of the cache."""

    def __init__(self, gpu: Gpu, folder: Path, described: Json, seed: int) -> None:
        torch = _torch()
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
        torch = _torch()
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
        torch = _torch()
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
    torch = _torch()
    finite = torch.isfinite(own)
    relative = max(_TOLERANCE, _ROUNDINGS * precision)
    largest = float(own[finite].abs().max())
    return bool(torch.allclose(mine, own, rtol=0, atol=relative * largest, equal_nan=True))


class Results:
    """`results.json`: what was measured so far."""

    def __init__(self, path: Path, head: Json) -> None:
        self._path = path
        self.document: Json = {**head, "kernels": [], "failed": []}
        if path.exists():
            self._take(json.loads(path.read_text(encoding="utf-8")), head)

    def has(self, number: int) -> bool:
        """Whether a kernel is done."""
        return any(entry["kernel"] == number for entry in self.document["kernels"])

    def failed(self, number: int) -> set[int]:
        """Candidates of a kernel that are not to be tried again."""
        found = self.document["failed"]
        return {entry["candidate"] for entry in found if entry["kernel"] == number}

    def put(self, part: str, entry: Json) -> None:
        """Adds an entry and writes the file."""
        self.document[part].append(entry)
        scratch = self._path.with_suffix(".partial")
        scratch.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, self._path)

    def _take(self, before: Json, head: Json) -> None:
        for name in ("candidates", "gpu"):
            if before.get(name) != head[name]:
                raise DeviceError(
                    f"{self._path} is of another {'folder' if name == 'candidates' else 'GPU'}: "
                    "move it away, or give another --output"
                )
        self.document = before


def main(
    folder: Path, arguments: Sequence[str] | None = None, machine: Callable[[], Gpu] = Gpu
) -> int:
    """Measures what is left; 0 when that is done or the time is up, 1 after a failure, or 2.

    Args:
        folder: of the candidates.
        arguments: of the command line.
        machine: makes the GPU.
    """
    options = _options(arguments)
    try:
        document = json.loads((folder / CANDIDATES).read_text(encoding="utf-8"))
        _check_code(folder, document)
        gpu = machine()
        head = {
            "format": 1,
            "candidates": document["digest"],
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            **gpu.facts(),
        }
        results = Results(options.output or folder / RESULTS, head)
    except (DeviceError, ImportError, OSError, ValueError, KeyError) as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 2
    return _measure(gpu, folder, document, results, options.seconds)


def _measure(gpu: Gpu, folder: Path, document: Json, results: Results, seconds: float) -> int:
    end = time.monotonic() + seconds
    kernels = document["kernels"]
    for number, described in enumerate(kernels):
        name = "{kind} {out_features}x{in_features} for {rows} rows".format(**described)
        if results.has(number) or 0 in results.failed(number):
            continue
        if time.monotonic() > end:
            left = sum(not results.has(i) for i in range(len(kernels)))
            print(f"the time is up: {left} kernels are left; run it again to go on", flush=True)
            return 0
        try:
            entry = _compared(gpu, folder, described, document["seed"], results.failed(number))
        except CandidateError as error:
            # What a kernel did wrong may have ended the use of the GPU by this process.
            entry = {"kernel": number, "candidate": error.candidate, "error": str(error)}
            results.put("failed", entry)
            print(f"{name}: {error}; run it again to go on without", flush=True)
            return 1
        results.put("kernels", {"kernel": number, **entry})
        print(f"{name}: {_said(entry)}", flush=True)
    return 0


def _compared(gpu: Gpu, folder: Path, described: Json, seed: int, failed: set[int]) -> Json:
    with _candidate(0):
        product = Product(gpu, folder, described, seed)
    numbers = [i for i in range(1, len(described["candidates"])) if i not in failed]

    def compared(chosen: Iterable[int], samples: int) -> dict[int, Json | None]:
        found = {}
        for number in chosen:
            with _candidate(number):
                found[number] = product.compare(number, samples)
        return found

    brief = compared(numbers, _BRIEF)
    right = [entry for entry in brief.values() if entry is not None]
    best = [entry["candidate"] for entry in sorted(right, key=_ratio)[:_LEFT]]
    again = [entry for entry in compared(best, _LONG).values() if entry is not None]
    return {
        "best": min(again, key=_ratio, default=None),
        "brief": right,
        "wrong": [number for number, entry in brief.items() if entry is None],
    }


@contextlib.contextmanager
def _candidate(number: int) -> Iterator[None]:
    """Says which candidate fails."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CandidateError(number, lines[0]) from error


def _ratio(entry: Json) -> float:
    return float(entry["ratio"])


def _said(entry: Json) -> str:
    best, wrong = entry["best"], len(entry["wrong"])
    dropped = f", {wrong} dropped for wrong outputs" if wrong else ""
    if best is None:
        return f"no other candidate{dropped}"
    return (
        f"{best['median_us']:.2f} µs beside {best['default_us']:.2f} µs of the rule's own, "
        f"spread {best['spread']:.1%}, of {len(entry['brief'])} candidates{dropped}"
    )


def _check_code(folder: Path, document: Json) -> None:
    """Refuses a folder that was copied in part."""
    for kernel in document["kernels"]:
        for candidate in kernel["candidates"]:
            code = folder / CODE / candidate["code"]
            found = hashlib.sha256(code.read_bytes()).hexdigest()
            if not candidate["code"].startswith(found):
                raise DeviceError(f"{code} is damaged: copy the folder again")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="measure.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=1500.0, help="start no kernel after so many; default 1500"
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="default: results.json beside this script"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
