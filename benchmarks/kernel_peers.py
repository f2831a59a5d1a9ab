"""The peers that are installed anyway: ONNX Runtime and PyTorch."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from undense.passes.errors import MissingDependencyError

from .kernel_forms import Weight
from .kernel_layer import Array, Call, Layer, checked_outputs
from .kernel_models import dense_model, structured_model

ORT, TORCH = "ORT", "torch"
BASELINE = f"{ORT} float32"


def ort_dense(weight: Weight) -> Layer:
    """One MatMul: what all others are compared with."""
    return weight.layer(ORT, "float32", weight.dense.nbytes, _ort(dense_model(weight.dense)))


def ort_int8(weight: Weight) -> Layer:
    """What ONNX Runtime's `quantize_dynamic` makes of the MatMul, with a scale for each output."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="undense-int8-") as folder:
        path = Path(folder) / "layer.onnx"
        plain = dense_model(weight.dense)
        # Else a warning asks for a pre-processing that a single MatMul does not need.
        onnx.helper.set_model_props(plain, {"onnx.quant.pre_process": "onnxruntime.quant"})
        quantize_dynamic(plain, path, per_channel=True)
        model = onnx.load(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept = checked_outputs(weight.out_features)
    codes, scale, zero_point = (
        stored[f"weight_{name}"][..., kept].astype(np.float64)
        for name in ("quantized", "scale", "zero_point")
    )
    return Layer(
        engine=ORT,
        scheme="dynamic int8",
        out_features=weight.out_features,
        in_features=weight.in_features,
        weight=((codes - zero_point) * scale).T,
        macs=weight.dense.size,
        stored_bytes=sum(tensor.nbytes for tensor in stored.values()),
        load=_ort(model),
        arithmetic="int8",
        rounded=_rounded_asymmetric,
    )


def ort_structured(weight: Weight, scheme: str, name: str, *, four_bit: bool = False) -> Layer:
    """The function that undense writes for a structure, in stock operators, under a given name."""
    form = weight.form(scheme)
    shape = (weight.out_features, weight.in_features)
    model = structured_model(form, *shape)
    stored = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return Layer(
        engine=ORT,
        scheme=name,
        out_features=shape[0],
        in_features=shape[1],
        weight=form.checked,
        macs=form.structure.macs(*shape),
        stored_bytes=sum(tensor.nbytes for tensor in stored),
        load=_ort(model),
        arithmetic="int8" if form.rounds else "float32",
        rounded=form.rounded if form.rounds else None,
        four_bit=four_bit,
    )


def torch_dense(weight: Weight) -> Layer:
    """`torch.nn.functional.linear`."""

    def load(threads: int) -> Callable[[Array], Call]:
        torch.set_num_threads(threads)
        copied = torch.from_numpy(weight.dense).clone()
        return _torch(lambda x: torch.nn.functional.linear(x, copied))

    return weight.layer(TORCH, "float32", weight.dense.nbytes, load)


def torch_int8(weight: Weight) -> Layer:
    """PyTorch's dynamically quantised linear, with a scale for each output.

    Raises:
        MissingDependencyError: this release of PyTorch has it no more.
    """
    dense = torch.from_numpy(weight.dense)
    scales = dense.abs().amax(1).double() / 127
    zeros = torch.zeros(weight.out_features, dtype=torch.int64)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*deprecated", UserWarning)
            quantized = torch.quantize_per_channel(dense, scales, zeros, 0, torch.qint8)
            linear_dynamic = torch.ops.quantized.linear_dynamic
            torch.ops.quantized.linear_prepack(quantized, None)
    except (AttributeError, RuntimeError) as error:
        raise MissingDependencyError(
            f"torch {torch.__version__} has no dynamically quantised linear ({error}); "
            "install an older one to compare with it"
        ) from error
    kept = checked_outputs(weight.out_features)

    def load(threads: int) -> Callable[[Array], Call]:
        torch.set_num_threads(threads)
        packed = torch.ops.quantized.linear_prepack(quantized, None)
        return _torch(lambda x: linear_dynamic(x, packed))

    return Layer(
        engine=TORCH,
        scheme="dynamic int8",
        out_features=weight.out_features,
        in_features=weight.in_features,
        weight=(quantized.int_repr()[kept].double() * scales[kept, None]).numpy(),
        macs=weight.dense.size,
        stored_bytes=weight.dense.size + scales.numel() * 4,
        load=load,
        arithmetic="int8",
    )


def _ort(model: onnx.ModelProto) -> Callable[[int], Callable[[Array], Call]]:
    """Sessions of a model whose input and output stay where they are."""
    serialized = model.SerializeToString()
    width = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value

    def load(threads: int) -> Callable[[Array], Call]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            serialized, options, providers=["CPUExecutionProvider"]
        )

        def bind(x: Array) -> Call:
            binding = session.io_binding()
            given = onnxruntime.OrtValue.ortvalue_from_numpy(x)
            result = onnxruntime.OrtValue.ortvalue_from_shape_and_type([len(x), width], np.float32)
            binding.bind_ortvalue_input("x", given)
            binding.bind_ortvalue_output("y", result)
            run = partial(session.run_with_iobinding, binding)
            return Call(run, result.numpy, (x, given))

        return bind

    return load


def _torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Call]:
    def bind(x: Array) -> Call:
        tensor = torch.from_numpy(x)

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return function(tensor)

        def output() -> Array:
            found: Array = run().numpy()
            return found

        return Call(run, output)

    return bind


def _rounded_asymmetric(x: Array) -> Array:
    """What DynamicQuantizeLinear makes of x: uint8 with one scale and zero point for all rows."""
    low, high = min(np.float32(0), x.min()), max(np.float32(0), x.max())
    scale = np.float32((high - low) / np.float32(255))
    zero_point = np.rint(np.clip(-low / scale, 0, 255))
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.float64)
    decoded: Array = (codes - float(zero_point)) * float(scale)
    return decoded
