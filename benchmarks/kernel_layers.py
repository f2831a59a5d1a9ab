"""The layers of undense: kernels compiled one by one, and called on memory that is there already.

No virtual machine is between: the primitive functions are called as they are. A dense weight, which
is no structure, is a model of one MatMul, called through TVM's virtual machine for lack of steps of
its own, which takes two microseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import tvm
from tvm.runtime.vm import VirtualMachine
from undense.backend.kernels import kernel_for
from undense.backend.kernels.lowering import lowering_context
from undense.backend.relax_build.compile import build
from undense.backend.target import Target
from undense.runtime.tvm_session import use_threads

from .kernel_forms import Weight
from .kernel_layer import Array, Call, Layer
from .kernel_models import dense_model

ENGINE = "undense"
_TARGET = Target.parse("llvm")


def structured(weight: Weight, scheme: str) -> Layer:
    """A form of the weight in the kernels of its structure."""
    form = weight.form(scheme)
    structure, shape = form.structure, (weight.out_features, weight.in_features)
    kernel = kernel_for(structure)
    packed = kernel.pack(structure, form.factors)
    machine = _TARGET.tvm()
    with machine:
        shapes = {name: tensor.shape for name, tensor in packed.items()}
        steps = kernel.steps(structure, *shape, shapes)
        functions = {step.name: step.function for step in steps}
        module = tvm.IRModule(
            {name: func.with_attr("global_symbol", name) for name, func in functions.items()}
        )
        with lowering_context():
            executable = tvm.compile(module, target=machine)
    compiled = [executable[step.name] for step in steps]

    def load(threads: int) -> Callable[[Array], Call]:
        use_threads(threads)
        weights = {name: tvm.runtime.tensor(tensor) for name, tensor in packed.items()}

        def bind(x: Array) -> Call:
            values = {"x": tvm.runtime.tensor(x), **weights}
            calls = []
            for step, function in zip(steps, compiled, strict=True):
                for output in step.outputs:
                    values[output.name] = tvm.runtime.empty((len(x), output.width), output.dtype)
                names = [*step.inputs, *(output.name for output in step.outputs)]
                calls.append((function, [values[name] for name in names]))

            def run() -> None:
                for function, arguments in calls:
                    function(*arguments)

            return Call(run, values[steps[-1].outputs[0].name].numpy)

        return bind

    return Layer(
        engine=ENGINE,
        scheme=scheme,
        out_features=shape[0],
        in_features=shape[1],
        weight=form.checked,
        macs=structure.macs(*shape),
        stored_bytes=sum(tensor.nbytes for tensor in packed.values()),
        load=load,
        arithmetic="int8" if form.rounds else "float32",
        rounded=form.rounded if form.rounds else None,
    )


def dense(weight: Weight) -> Layer:
    """The weight itself, in float32."""
    module = build(ir.serde.deserialize_model(dense_model(weight.dense)), _TARGET)

    def load(threads: int) -> Callable[[Array], Call]:
        use_threads(threads)
        weights = [tvm.runtime.tensor(tensor) for tensor in module.weights.values()]
        main = VirtualMachine(module.executable, tvm.cpu())["main"]

        def bind(x: Array) -> Call:
            arguments = [tvm.runtime.tensor(x), *weights]

            def output() -> Array:
                result: Array = main(*arguments)[0].numpy()
                return result

            return Call(lambda: main(*arguments), output)

        return bind

    stored = sum(np.asarray(tensor).nbytes for tensor in module.weights.values())
    return weight.layer(ENGINE, "dense", stored, load)
