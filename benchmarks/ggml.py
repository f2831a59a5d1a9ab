"""The layers of ggml, llama.cpp's tensor library, called through ctypes.

As in llama.cpp a weight lies in the first of the CPU's buffer types that has a faster kernel for it
(which may repack it), and the threads of a pool wait for work.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from undense.passes.errors import InputError

from .ggml_build import libraries
from .kernel_forms import Weight
from .kernel_layer import Array, Call, Layer, checked_outputs

ENGINE = "ggml"
_TYPES = {"f32": 0, "Q4_0": 2, "Q8_0": 8, "TQ2_0": 35}
_BLOCKS = {"Q4_0": 32, "Q8_0": 32, "TQ2_0": 256}
FORMATS = tuple(_BLOCKS)
_FOUR_BIT = "Q4_0"
_GRAPH_TENSORS = 16

_Pointer = ctypes.c_void_p
_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _Pointer)
_FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {
    "ggml_backend_alloc_ctx_tensors_from_buft": (_Pointer, [_Pointer, _Pointer]),
    "ggml_backend_buffer_free": (None, [_Pointer]),
    "ggml_backend_cpu_buffer_type": (_Pointer, []),
    "ggml_backend_cpu_init": (_Pointer, []),
    "ggml_backend_cpu_reg": (_Pointer, []),
    "ggml_backend_cpu_set_n_threads": (None, [_Pointer, ctypes.c_int]),
    "ggml_backend_cpu_set_threadpool": (None, [_Pointer, _Pointer]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_Pointer, _Pointer]),
    "ggml_backend_graph_compute": (ctypes.c_int, [_Pointer, _Pointer]),
    "ggml_backend_reg_dev_get": (_Pointer, [_Pointer, ctypes.c_size_t]),
    "ggml_backend_reg_get_proc_address": (_Pointer, [_Pointer, ctypes.c_char_p]),
    "ggml_backend_tensor_get": (None, [_Pointer, _Pointer, ctypes.c_size_t, ctypes.c_size_t]),
    "ggml_backend_tensor_set": (None, [_Pointer, _Pointer, ctypes.c_size_t, ctypes.c_size_t]),
    "ggml_build_forward_expand": (None, [_Pointer, _Pointer]),
    "ggml_free": (None, [_Pointer]),
    "ggml_graph_overhead": (ctypes.c_size_t, []),
    "ggml_mul_mat": (_Pointer, [_Pointer, _Pointer, _Pointer]),
    "ggml_new_graph": (_Pointer, [_Pointer]),
    "ggml_new_tensor_2d": (
        _Pointer,
        [_Pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64],
    ),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        [ctypes.c_int, _Pointer, _Pointer, *[ctypes.c_int64] * 3, _Pointer],
    ),
    "ggml_row_size": (ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]),
    "ggml_tensor_overhead": (ctypes.c_size_t, []),
    "ggml_threadpool_new": (_Pointer, [_Pointer]),
}
"""The result and the arguments of what is called here."""


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", _Pointer),
        ("no_alloc", ctypes.c_bool),
    )


class _ThreadpoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class _Library:
    """Both libraries as one: `call.ggml_mul_mat(...)`."""

    def __init__(self) -> None:
        folder = libraries()
        base, cpu = (ctypes.CDLL(str(folder / f"libggml-{part}.so")) for part in ("base", "cpu"))
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(cpu, name, None) or getattr(base, name)
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function
        self._init = base.ggml_init
        self._init.restype, self._init.argtypes = _Pointer, [_InitParams]
        self._init_pool = base.ggml_threadpool_params_init
        self._init_pool.restype, self._init_pool.argtypes = None, [_Pointer, ctypes.c_int]
        self._silent = _Log(lambda level, text, data: None)
        base.ggml_log_set(self._silent, None)

    def __getattr__(self, name: str) -> Any:
        return self._functions[name]

    def context(self) -> int:
        """A context that describes some tensors and one graph, and has no memory for their data."""
        size = _GRAPH_TENSORS * self.ggml_tensor_overhead() + self.ggml_graph_overhead()
        return int(self._init(_InitParams(size, None, True)))

    @cache  # noqa: B019 - one library a process
    def backend(self, threads: int) -> int:
        """A CPU backend with a pool of its own."""
        backend = self.ggml_backend_cpu_init()
        self.ggml_backend_cpu_set_n_threads(backend, threads)
        if threads > 1:
            params = _ThreadpoolParams()
            self._init_pool(ctypes.byref(params), threads)
            pool = self.ggml_threadpool_new(ctypes.byref(params))
            self.ggml_backend_cpu_set_threadpool(backend, pool)
        return int(backend)

    def buffer_types(self) -> list[int]:
        """Those with faster kernels for some weights, then the plain one."""
        registry = self.ggml_backend_cpu_reg()
        device = self.ggml_backend_reg_dev_get(registry, 0)
        address = self.ggml_backend_reg_get_proc_address(
            registry, b"ggml_backend_dev_get_extra_bufts"
        )
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(_Pointer), _Pointer)(address)(device)
        found: list[int] = []
        while extra and extra[len(found)]:
            found.append(int(extra[len(found)]))
        return [*found, self.ggml_backend_cpu_buffer_type()]

    def supports(self, product: int) -> bool:
        """Whether the CPU computes a product from the buffer in which its weight lies."""
        device = self.ggml_backend_reg_dev_get(self.ggml_backend_cpu_reg(), 0)
        return bool(self.ggml_backend_dev_supports_op(device, product))


@cache
def _library() -> _Library:
    return _Library()


def quantized(weight: Weight, name: str) -> Layer:
    """The weight in one of `FORMATS`.

    Raises:
        InputError: in_features are no whole blocks.
        MissingDependencyError: ggml cannot be built.
    """
    block, columns, rows = _BLOCKS[name], weight.in_features, weight.out_features
    if columns % block:
        raise InputError(f"{name} has blocks of {block}, and {columns} inputs are no whole blocks")
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    library, kind = _library(), _TYPES[name]
    stored = np.empty((rows, library.ggml_row_size(kind, columns)), np.uint8)
    dense = np.ascontiguousarray(weight.dense)
    library.ggml_quantize_chunk(kind, dense.ctypes.data, stored.ctypes.data, 0, rows, columns, None)
    kept = checked_outputs(rows)
    decoded = dequantize(stored[kept], GGMLQuantizationType[name]).astype(np.float64)

    def load(threads: int) -> Callable[[Array], Call]:
        copy = _Stored(library, kind, stored, rows, columns)
        return lambda x: copy.bind(x, threads)

    return Layer(
        engine=ENGINE,
        scheme=name,
        out_features=rows,
        in_features=columns,
        weight=decoded,
        macs=rows * columns,
        stored_bytes=stored.nbytes,
        load=load,
        arithmetic="int8",
        four_bit=name == _FOUR_BIT,
    )


class _Stored:
    """A weight in the memory of ggml."""

    def __init__(
        self, library: _Library, kind: int, stored: Array, rows: int, columns: int
    ) -> None:
        self._library, self._rows, self._columns = library, rows, columns
        for buffer_type in library.buffer_types():
            context = library.context()
            tensor = library.ggml_new_tensor_2d(context, kind, columns, rows)
            buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
            free = weakref.finalize(self, _free, library, context, buffer)
            if self._fits(tensor):
                break
            free()
        self._tensor = tensor
        library.ggml_backend_tensor_set(tensor, stored.ctypes.data, 0, stored.nbytes)

    def _fits(self, tensor: int) -> bool:
        library = self._library
        context = library.context()
        x = library.ggml_new_tensor_2d(context, _TYPES["f32"], self._columns, 1)
        fits = library.supports(library.ggml_mul_mat(context, tensor, x))
        library.ggml_free(context)
        return fits

    def bind(self, x: Array, threads: int) -> Call:
        """The product with x as a graph of one node."""
        library = self._library
        context = library.context()
        given = library.ggml_new_tensor_2d(context, _TYPES["f32"], self._columns, len(x))
        y = library.ggml_mul_mat(context, self._tensor, given)
        graph = library.ggml_new_graph(context)
        library.ggml_build_forward_expand(graph, y)
        buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(
            context, library.ggml_backend_cpu_buffer_type()
        )
        library.ggml_backend_tensor_set(given, x.ctypes.data, 0, x.nbytes)
        compute, backend = library.ggml_backend_graph_compute, library.backend(threads)

        def run() -> None:
            compute(backend, graph)

        def output() -> Array:
            found = np.empty((len(x), self._rows), np.float32)
            library.ggml_backend_tensor_get(y, found.ctypes.data, 0, found.nbytes)
            return found

        weakref.finalize(run, _free, library, context, buffer)
        return Call(run, output, self)


def _free(library: _Library, context: int, buffer: int) -> None:
    library.ggml_backend_buffer_free(buffer)
    library.ggml_free(context)
