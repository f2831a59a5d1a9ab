"""TVM compiles for the emulated CUDA device, and runs on it."""

from __future__ import annotations

from typing import Any

import cuda_emulation
import ml_dtypes
import numpy as np
import pytest
from cuda_emulation import toolchain
from cuda_emulation.elf import rename_needed
from cuda_emulation.source import host_source
from cuda_emulation.toolchain import built
from cuda_helpers import ORDERS, random
from helpers import assert_close
from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("cuda_device")

NOTHING = 'extern "C" __global__ void nothing() {}\n'


def build(function: Any, inputs: list[tuple[tuple[Any, ...], str]], rules: list[Any]) -> Any:
    """A Relax executable whose `main` is `function` of its inputs, scheduled by dlight."""
    import tvm
    from tvm import relax
    from tvm.s_tir import dlight

    variables = [
        relax.Var(f"x{i}", relax.TensorType(shape, dtype))
        for i, (shape, dtype) in enumerate(inputs)
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            output = builder.emit_output(function(*variables))
        builder.emit_func_output(output)
    target = tvm.target.Target(cuda_emulation.TARGET)
    with target:
        module = relax.transform.LegalizeOps()(builder.get())
        module = dlight.ApplyDefaultSchedule(*rules)(module)
        return tvm.compile(module, target=target)


def run(executable: Any, device: Any, *arrays: NDArray[Any]) -> NDArray[Any]:
    import tvm

    machine = tvm.relax.VirtualMachine(executable, device)
    result = machine["main"](*(tvm.runtime.tensor(array, device) for array in arrays))
    return result.numpy()


def rows() -> Any:
    import tvm

    return tvm.tirx.Var("n", "int64")


def test_a_matmul_of_any_number_of_rows(cuda_device):
    from tvm import relax
    from tvm.s_tir import dlight

    weight = random(11, 40, 24)
    with cuda_emulation.emulated():
        shapes = [((rows(), 40), "float32"), ((40, 24), "float32")]
        executable = build(relax.op.matmul, shapes, [dlight.gpu.Matmul()])
        for n in (1, 5, 33):
            x = random(n, n, 40)
            result = run(executable, cuda_device, x, weight)
            assert_close(result, x.astype(np.float64) @ weight, reduction=40)


@pytest.mark.parametrize("order", ORDERS[:3])
def test_a_gemv_of_halves(cuda_device, order):
    from tvm import relax
    from tvm.s_tir import dlight

    x, weight = random(12, 1, 256).astype(np.float16), random(13, 64, 256).astype(np.float16)

    def product(x: Any, weight: Any) -> Any:
        return relax.op.matmul(x, relax.op.permute_dims(weight), out_dtype="float32")

    with cuda_emulation.emulated(order):
        shapes = [(x.shape, "float16"), (weight.shape, "float16")]
        executable = build(product, shapes, [dlight.gpu.GEMV(), dlight.gpu.Fallback()])
        result = run(executable, cuda_device, x, weight)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert_close(result, expected, reduction=256)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reductions_and_elementwise_kernels(cuda_device, dtype):
    from tvm import relax
    from tvm.s_tir import dlight

    def function(x: Any) -> Any:
        return relax.op.nn.softmax(relax.op.nn.silu(x))

    with cuda_emulation.emulated():
        rules = [dlight.gpu.GeneralReduction(), dlight.gpu.Fallback()]
        executable = build(function, [((rows(), 70), dtype)], rules)
        x = random(14, 3, 70).astype(dtype)
        result = run(executable, cuda_device, x)
    wide = x.astype(np.float64)
    silu = wide / (1 + np.exp(-wide))
    expected = np.exp(silu) / np.exp(silu).sum(axis=1, keepdims=True)
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    assert result.shape == expected.shape
    assert np.abs(result.astype(np.float64) - expected).max() <= 8 * epsilon * expected.max()


def test_memory_that_no_kernel_wrote_is_not_a_number(cuda_device):
    import tvm

    assert np.isnan(tvm.runtime.empty((5,), "float32", cuda_device).numpy()).all()


def test_the_compiler_of_before_is_back(cuda_device):
    import tvm_ffi

    name = "tvm_callback_cuda_compile"
    before = tvm_ffi.get_global_func(name)
    with cuda_emulation.emulated():
        inside = tvm_ffi.get_global_func(name)
        assert inside(NOTHING) == cuda_emulation.compile(NOTHING)
    assert tvm_ffi.get_global_func(name).same_as(before)


def mirror(rows: int, dtype: str, lanes: int) -> Any:
    """A module that turns `rows` of 64 entries upside down, all at once in shared memory."""
    from tvm.script import ir as I
    from tvm.script import tirx as T

    steps = rows * 64 // 128 // lanes

    @I.ir_module
    class Module:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((rows, 64), dtype), y: T.Buffer((rows, 64), dtype)):
            for _block in T.thread_binding(1, "blockIdx.x"):
                for thread in T.thread_binding(128, "threadIdx.x"):
                    tile = T.sblock_alloc_buffer((rows, 64), dtype, scope="shared.dyn")
                    for step in range(steps):
                        for lane in T.vectorized(lanes):
                            with T.sblock("tile"):
                                i = T.axis.spatial(
                                    rows, ((step * 128 + thread) * lanes + lane) // 64
                                )
                                j = T.axis.spatial(64, ((step * 128 + thread) * lanes + lane) % 64)
                                tile[i, j] = x[i, j]
                    for step in range(steps):
                        for lane in T.vectorized(lanes):
                            with T.sblock("y"):
                                i = T.axis.spatial(
                                    rows, ((step * 128 + thread) * lanes + lane) // 64
                                )
                                j = T.axis.spatial(64, ((step * 128 + thread) * lanes + lane) % 64)
                                y[i, j] = tile[rows - 1 - i, j]

    return Module


@pytest.mark.parametrize(
    ("dtype", "lanes", "rows"),
    [
        *(("float32", 4, 64), ("float32", 4, 256), ("float16", 8, 64), ("bfloat16", 8, 64)),
        *(("int8", 4, 64), ("int8", 16, 64)),
    ],
)
def test_vectors_in_dynamic_shared_memory(cuda_device, dtype, lanes, rows):
    import tvm

    target = tvm.target.Target(cuda_emulation.TARGET)
    x = (4 * random(18, rows, 64)).astype(dtype)
    y = tvm.runtime.empty(x.shape, dtype, cuda_device)
    with cuda_emulation.emulated("shuffled:3"), target:
        executable = tvm.compile(mirror(rows, dtype, lanes), target=target)
        executable["main"](tvm.runtime.tensor(x, cuda_device), y)
    assert (y.numpy() == x[::-1]).all()


def test_more_shared_memory_than_there_is(cuda_device):
    import tvm

    target = tvm.target.Target(cuda_emulation.TARGET)
    rows = 1024  # 256 KB
    x, y = (tvm.runtime.empty((rows, 64), "float32", cuda_device) for _ in range(2))
    with cuda_emulation.emulated(), target:
        executable = tvm.compile(mirror(rows, "float32", 4), target=target)
        with pytest.raises(tvm.error.InternalError, match="dynamic shared memory size to 262144"):
            executable["main"](x, y)


def test_an_error_of_a_launch_is_an_exception_of_tvm(cuda_device, tmp_path):
    import tvm
    from tvm.script import ir as I
    from tvm.script import tirx as T

    header = tmp_path / "fault.h"
    header.write_text(
        "__device__ inline float fault(float x) {\n  if (x < 0) __syncwarp();\n  return 2 * x;\n}\n"
    )

    @I.ir_module
    class Module:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((32,), "float32"), y: T.Buffer((32,), "float32")):
            for i in T.thread_binding(32, "threadIdx.x"):
                with T.sblock("y"):
                    j = T.axis.spatial(32, i)
                    y[j] = T.call_extern("float32", "fault", x[j])

    target = tvm.target.Target(cuda_emulation.TARGET)
    x = np.arange(32, dtype=np.float32)
    with cuda_emulation.emulated(headers=[header]), target:
        executable = tvm.compile(Module, target=target)
        y = tvm.runtime.empty((32,), "float32", cuda_device)
        executable["main"](tvm.runtime.tensor(x, cuda_device), y)
        assert (y.numpy() == 2 * x).all()
        with pytest.raises(tvm.error.InternalError, match=r"kernel main_kernel.*deadlock"):
            executable["main"](tvm.runtime.tensor(x - 3, cuda_device), y)


def test_a_graph_of_the_virtual_machine_is_replayed_with_other_data(cuda_device):
    import tvm
    from tvm import relax
    from tvm.s_tir import dlight

    weight = random(15, 8, 8)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            hidden = builder.emit(relax.op.add(x, relax.const(np.float32(1))))
            for _ in range(3):
                hidden = builder.emit(
                    relax.op.nn.relu(relax.op.matmul(hidden, relax.const(weight)))
                )
            output = builder.emit_output(relax.op.add(hidden, x))
        builder.emit_func_output(output)
    target = tvm.target.Target(cuda_emulation.TARGET)
    options = {"relax.backend.use_cuda_graph": True}
    with cuda_emulation.emulated(), target, tvm.transform.PassContext(config=options):
        module = relax.transform.LegalizeOps()(builder.get())
        module = dlight.ApplyDefaultSchedule(dlight.gpu.Matmul(), dlight.gpu.Fallback())(module)
        executable = tvm.compile(module, target=target)
        assert "cuda_graph.run_or_capture" in executable.as_text()
        machine = relax.VirtualMachine(executable, cuda_device)
        before = cuda_emulation.graph_launches()
        for seed in range(4):
            given = random(20 + seed, 4, 8)
            result = machine["main"](tvm.runtime.tensor(given, cuda_device)).numpy()
            expected = given + 1.0
            for _ in range(3):
                expected = np.maximum(expected @ weight, 0)
            assert_close(result, expected + given, reduction=24)
        assert cuda_emulation.graph_launches() == before + 3  # the first call captures


def test_the_message_of_the_compiler_is_the_error():
    with pytest.raises(RuntimeError, match="no_such_function"):
        cuda_emulation.compile('extern "C" __global__ void k() {\n  no_such_function();\n}\n')
    with pytest.raises(ValueError, match="no kernel"):
        host_source("int x;")


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fails(target):
        target.write_bytes(b"half")
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        built(tmp_path / "file", fails)
    assert list(tmp_path.iterdir()) == []
    assert (
        built(tmp_path / "file", lambda target: target.write_bytes(b"all")).read_bytes() == b"all"
    )
    assert built(tmp_path / "file", fails).read_bytes() == b"all"


def test_names_that_are_not_equally_long_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        rename_needed(b"", "libcuda.so.1", "cuda.so.1")


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(cuda_emulation.EmulationUnavailable, match=r"g\+\+; install it"):
        toolchain.compiler.__wrapped__()
    monkeypatch.setattr(toolchain, "_HEADERS", ("no_such_header.h",))
    with pytest.raises(cuda_emulation.EmulationUnavailable, match="no CUDA toolkit with no_such"):
        toolchain.cuda_headers.__wrapped__()
