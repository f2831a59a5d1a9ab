"""Measures candidates on GPUs of the servers that TVM's RPC tracker lends."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from ...cuda.module import cuda_modules
from ...cuda.nvcc import nvcc_version
from ...kernels.cuda.product import Product
from ...kernels.cuda.products import Ruled
from ...kernels.lowering import lowering_context
from ...target import Target
from ..database import add_records
from ..program import filled
from ..record import Record, processor_name, versions
from ..remote import RemoteGpu, remote_devices
from ..search import Found, Search
from .candidates import sources
from .folder import product_arguments

_NAME = "candidate"


@dataclass(frozen=True, eq=False)
class GpuProgram:
    """One tiling of a product, which TVM's own runtime launches.

    Attributes:
        fields: that differ from the rule's.
        function: a PrimFunc of one kernel.
        architectures: to generate code for.
    """

    fields: Mapping[str, Any]
    function: Any
    architectures: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Of the one function."""
        return [_NAME]

    def compile(self, target: Any) -> Any:
        """Its machine code, and the code that launches it."""
        module = tvm.IRModule({_NAME: self.function.with_attr("global_symbol", _NAME)})
        with target, cuda_modules(self.architectures), lowering_context():
            return tvm.compile(module, target=target)


def measured_on_servers(
    work: Iterable[Ruled],
    rows: Sequence[int],
    target: Target,
    tracker: str,
    trials: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[tuple[Record, Found]]:
    """The records of what was measured; each is in the database before the next search.

    Args:
        work: the products.
        rows: numbers of rows to measure.
        target: to compile for; its last architecture is the key of the servers.
        tracker: `HOST:PORT`.
        trials: candidates of each product and number of rows at most.
        seed: of their order and of the inputs.
        progress: is told how many products and numbers of rows are done.

    Raises:
        TuningError: there is no such server, or one failed.
    """
    jobs = [(each, number) for each in work for number in rows if number in each.rows]
    found = []
    with remote_devices(tracker, target.architectures[-1], None, RemoteGpu) as devices:
        search = Search(devices, target.tvm(), trials, seed)
        for done, (each, number) in enumerate(jobs, start=1):
            default, *others = [
                GpuProgram(source.fields, source.function, target.architectures)
                for source in sources(each, number, target, trials, seed)
            ]
            outcome = search.best(default, others, [_arrays(each.product, number, seed)])
            progress(done)
            if outcome is None:
                continue
            record = _record(each.product, number, target, outcome, devices[0].name)
            # At once: what stops the search later does not take it away.
            add_records([record])
            found.append((record, outcome))
    return found


def _arrays(product: Product, rows: int, seed: int) -> list[NDArray[Any]]:
    """Random inputs, and an output of zeros."""
    random = np.random.default_rng(seed)
    found = []
    for item in product_arguments(product, rows):
        values = filled(random, item["shape"], item["dtype"])
        factor = 0.0 if item["output"] else item["scale"]
        found.append(values if factor == 1 else (values * factor).astype(values.dtype))
    return found


def _record(product: Product, rows: int, target: Target, outcome: Found, machine: str) -> Record:
    kind, outputs, inputs = product.workload
    comparison = outcome.comparison
    return Record(
        kind=kind,
        out_features=outputs,
        in_features=inputs,
        rows=rows,
        fields=outcome.fields,
        processor=processor_name(target),
        machine=machine,
        median_us=comparison.median_us,
        default_us=comparison.default_us,
        spread=comparison.spread,
        threads=1,
        versions={**versions("cuda"), "nvcc": ".".join(map(str, nvcc_version()))},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
