"""The CUDA source of one kernel and how it is launched, so that the driver alone can run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, StringImm
from tvm.sym import Analyzer
from tvm.tirx.build import codegen_build, split_host_device_mods

from ...cuda.module import cuda_modules, device_code_by
from ...kernels.lowering import lowering_context
from ...kernels.mathematics import dtype_of
from ...target import Target

_NAME = "candidate"
_ROWS = "rows"
_POINTER = "_ptr"
"""What TVM adds to the name of a buffer for that of its pointer."""

_BLOCKS = ("blockIdx.x", "blockIdx.y", "blockIdx.z")
_THREADS = ("threadIdx.x", "threadIdx.y", "threadIdx.z")
_SHARED = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class Launch:
    """One launch for a number of rows.

    Attributes:
        kernel: its name in the source.
        arguments: buffers by name, and `rows`, a 64-bit number, in the kernel's order.
        grid: blocks in x, y and z.
        block: threads of a block in x, y and z.
        shared_bytes: of a block, given at launch.
    """

    kernel: str
    arguments: tuple[str, ...]
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int

    @property
    def threads(self) -> int:
        """Of a block."""
        x, y, z = self.block
        return x * y * z


def lowered(function: Any, target: Target, rows: int) -> tuple[str, Launch]:
    """The CUDA source of a PrimFunc of one kernel over `rows`, and its launch for so many.

    The source is that of an artifact: it takes any number of rows.
    """
    machine = target.tvm()
    bound = tirx.transform.BindTarget(machine)
    with machine, lowering_context():
        pipeline, _, finish = tirx.get_default_tir_pipeline(machine)
        module = pipeline(bound(tvm.IRModule({_NAME: function.with_attr("global_symbol", _NAME)})))
        host, devices = split_host_device_mods(module)
        ((kind, device),) = devices.items()
        source = _source(finish()(device), kind)
    ((variable, kernel),) = device.functions.items()
    return source, _launch(host, str(variable.name_hint), kernel, rows)


def _source(module: Any, target: Any) -> str:
    """What TVM would give to nvcc."""
    found: list[str] = []

    def keep(source: str, _: Sequence[str]) -> bytes:
        found.append(source)
        return b"no code"

    with device_code_by(keep), cuda_modules(()):
        codegen_build(module, target)
    (source,) = found
    return source


def _launch(host: Any, name: str, kernel: Any, rows: int) -> Launch:
    """The launch that TVM's host code makes: arguments, then what the launch parameters name."""
    calls: list[Any] = []

    def visit(node: Any) -> None:
        first = node.args[0] if node.args else None
        if isinstance(first, StringImm) and first.value == name:
            calls.append(node)

    for function in host.functions.values():
        tvm_ffi.structural_walk(function.body, (Call, visit), order="post")
    (call,) = calls
    count = len(kernel.params)
    tags = [str(tag) for tag in kernel.attrs["tirx.kernel_launch_params"]]
    values = [_number(value, rows) for value in list(call.args)[1 + count :]]
    extents = dict(zip(tags, values, strict=True))
    return Launch(
        name,
        tuple(str(parameter.name).removesuffix(_POINTER) for parameter in kernel.params),
        tuple(extents.get(tag, 1) for tag in _BLOCKS),
        tuple(extents.get(tag, 1) for tag in _THREADS),
        extents.get(_SHARED, 0),
    )


def _number(value: Any, rows: int) -> int:
    """An expression over the number of rows."""

    def known(variable: Any) -> Any:
        is_rows = str(variable.name) == _ROWS
        return tirx.const(rows, dtype_of(variable)) if is_rows else variable

    found = tvm_ffi.structural_map(value, (tirx.Var, known), order="post")
    return int(Analyzer().simplify(found))
