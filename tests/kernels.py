"""Shared by the tests of the TVM kernels: which structures to try, and how to run one."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu, target_has_features
from undense.backend.kernels import kernel_for
from undense.backend.kernels.emit import emit
from undense.backend.kernels.lowering import lowering_context
from undense.passes.errors import SchemeError
from undense.passes.structures import structures
from undense.passes.structures.base import Factors, Structure

Array = NDArray[Any]
Machine = Mapping[str, Any]
"""A target as TVM takes it."""

HOST = {"kind": "llvm", "mcpu": llvm_get_system_cpu()}
TARGETS: Mapping[str, tuple[dict[str, str], str | None]] = {
    "any": ({"kind": "llvm"}, None),
    "avx2": ({"kind": "llvm", "mcpu": "x86-64-v3"}, "avx2"),
    "avx512": ({"kind": "llvm", "mcpu": "x86-64-v4"}, "avx512bw"),
}
"""Targets of each rule, and the feature that this machine needs to run them."""


def host_has(feature: str | None) -> bool:
    """Whether code for a feature runs here."""
    return feature is None or bool(target_has_features(feature, Target(HOST)))


def options(cls: type[Structure]) -> list[Structure]:
    """All combinations of the fields that are a choice and reach the kernel."""
    choices: dict[str, tuple[Any, ...]] = {}
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, hint in typing.get_type_hints(cls).items():
        values = _values(hint)
        if name in names - {"fit_"} and values:
            choices[name] = tuple(value for value in values if value != "auto")
    found = []
    for values in itertools.product(*choices.values()):
        try:
            found.append(cls(**dict(zip(choices, values, strict=True))))
        except SchemeError:
            continue
    return found


def _values(hint: Any) -> tuple[Any, ...]:
    if hint is bool:
        return (True, False)
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return tuple(value for part in typing.get_args(hint) for value in _values(part))


ALL = [structure for cls in structures().values() for structure in options(cls)]


def random_factors(structure: Structure, shape: tuple[int, int]) -> Factors:
    """Factors of a random weight, fitted without data."""
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return structure.fit(weight, None, seed=0, site="test")


def lowered(
    structure: Structure,
    factors: Factors,
    shape: tuple[int, int],
    leading: tuple[str | int, ...] = ("rows",),
    *,
    target: Machine | None = None,
    gather: str | None = None,
    layers: int = 1,
    dtype: str = "float32",
) -> tuple[tvm.IRModule, dict[str, Array]]:
    """A module whose `main(x, *packed)` is one layer, or several side by side."""
    machine = Target(dict(target or HOST))
    with machine:
        kernel = kernel_for(structure, dtype)
    packed = kernel.pack(structure, factors)
    dimensions = [tirx.Var(d, "int64") if isinstance(d, str) else d for d in leading]
    x_type = relax.TensorType([*dimensions, *([] if gather else [shape[1]])], gather or dtype)
    x = relax.Var("x", x_type)
    parameters = {
        name: relax.Var(name, relax.TensorType(tensor.shape, str(tensor.dtype)))
        for name, tensor in packed.items()
    }
    builder = relax.BlockBuilder()
    shapes = {name: tensor.shape for name, tensor in packed.items()}
    with machine, builder.function("main", [x, *parameters.values()]):
        if gather:
            steps = [kernel.gather(structure, *shape, shapes, gather)]
        else:
            steps = list(kernel.steps(structure, *shape, shapes))
        with builder.dataflow():
            outputs = [
                emit(builder, steps, x, parameters, features=0 if gather else 1)
                for _ in range(layers)
            ]
            y = builder.emit_output(outputs[0] if layers == 1 else relax.Tuple(outputs))
        builder.emit_func_output(y)
    return builder.get(), packed


def compiled(
    structure: Structure,
    factors: Factors,
    shape: tuple[int, int],
    leading: tuple[str | int, ...] = ("rows",),
    *,
    target: Machine | None = None,
    gather: str | None = None,
    dtype: str = "float32",
) -> Callable[[Array], Array]:
    """The layer as a function of x, or of indices."""
    module, packed = lowered(
        structure, factors, shape, leading, target=target, gather=gather, dtype=dtype
    )
    machine = Target(dict(target or HOST))
    with machine, lowering_context():
        executable = tvm.compile(module, target=machine)
    device = tvm.cuda(0) if machine.kind.name == "cuda" else tvm.cpu()
    vm = relax.VirtualMachine(executable, device)
    weights = [tvm.runtime.tensor(tensor, device) for tensor in packed.values()]

    def run(x: Array) -> Array:
        y: Array = vm["main"](tvm.runtime.tensor(x, device), *weights).numpy()
        return y

    return run


def prim_funcs(module: tvm.IRModule) -> dict[str, Any]:
    """The primitive functions of a module by name."""
    return {
        variable.name_hint: function
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }


def built(make: Callable[[], Any], target: dict[str, str] | None = None) -> Callable[..., None]:
    """The function that `make` gives inside of a target, compiled."""
    machine = Target(dict(target or HOST))
    with machine, lowering_context():
        function = make().with_attr("global_symbol", "main")
        run = tvm.compile(tvm.IRModule({"main": function}), target=machine)["main"]

    def call(*arrays: Array) -> None:
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        run(*tensors)
        arrays[-1][...] = tensors[-1].numpy()

    return call
