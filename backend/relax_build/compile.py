"""onnx_ir model -> Relax -> scheduled primitive functions -> machine code."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...passes.errors import MissingDependencyError
from ..cuda.module import cuda_modules
from ..host_compiler import find_host_compiler
from ..kernels.lowering import lowering_context
from ..target import Target
from .finishing import finish_products
from .fusion import fuse
from .gpu_schedule import GENERIC_ON_GPU, apply_gpu_schedules
from .graphs import marked
from .module import TvmModule
from .schedule import GENERIC, apply_schedules
from .views import share_views
from .walker import Walk


def check_toolchain(target: Target) -> None:
    """Refuses to start long work that would end without a linker.

    Raises:
        MissingDependencyError: no C++ compiler on the path to link `module.so` with.
    """
    if find_host_compiler() is None:
        raise MissingDependencyError(
            "linking module.so needs a C++ compiler and none is on the path; install g++ or clang, "
            f"or compile for target ort-{target.device}, which needs none"
        )


@dataclass(frozen=True)
class Code:
    """A model's code without its weights.

    Attributes:
        walk: of the model; its builder knows the parameters.
        executable: TVM's, before it is written to a file.
        rules: that scheduled the functions which had no kernel, by their names.
    """

    walk: Walk
    executable: Any
    rules: Mapping[str, str | None]


def build_code(model: ir.Model, target: Target) -> Code:
    """The code of a model; dense weights are neither packed nor read.

    Raises:
        LoweringError: an operator, attribute or type that is not covered; names the node.
        MissingDependencyError: no C++ compiler.
    """
    import tvm

    check_toolchain(target)
    machine = target.tvm()
    on_gpu = target.device == "cuda"
    modules: AbstractContextManager[None] = nullcontext()
    if on_gpu:
        modules = cuda_modules(target.architectures)
    with machine:
        walk = Walk(model)
        schedule = apply_gpu_schedules if on_gpu else apply_schedules
        module, rules = schedule(fused(walk))
        if target.graphs is not None:
            module = marked(module, walk.builder.bounds, target.graphs.symbols)
        with modules, lowering_context(use_cuda_graph=target.graphs is not None):
            executable = tvm.compile(module, target=machine, relax_pipeline=_lower())
    return Code(walk, executable, rules)


def build(model: ir.Model, target: Target) -> TvmModule:
    """The model compiled for a TVM target; weights stay apart from the code.

    Raises:
        LoweringError: an operator, attribute or type that is not covered; names the node.
        MissingDependencyError: no C++ compiler.
    """
    code = build_code(model, target)
    with target.tvm():
        weights = code.walk.builder.parameters.arrays()
    return TvmModule(
        executable=code.executable,
        weights=weights,
        inputs=code.walk.inputs,
        outputs=code.walk.outputs,
        dimension_bounds=code.walk.builder.bounds,
        sources=code.walk.builder.parameters.sources,
        libraries=frozenset(code.walk.builder.libraries),
        generic_functions={
            name: rule
            for name, rule in sorted(code.rules.items())
            if rule in (GENERIC, GENERIC_ON_GPU, None)
        },
    )


def fused(walk: Walk) -> Any:
    """The module of a walk with its operators in functions, of which some have kernels already."""
    return finish_products(fuse(walk.module), walk.builder.products)


def _lower() -> Any:
    """Relax's own lowering: memory planned once, shapes computed on the host."""
    import tvm
    from tvm.relax import transform

    return tvm.transform.Sequential(
        [
            transform.RewriteDataflowReshape(),
            transform.ToNonDataflow(),
            transform.RemovePurityChecking(),
            transform.CallTIRRewrite(),
            transform.StaticPlanBlockMemory(),
            # Does nothing but in a context that asks for CUDA graphs.
            transform.RewriteCUDAGraph(),
            transform.LowerAllocTensor(),
            transform.KillAfterLastUse(),
            transform.LowerRuntimeBuiltin(),
            transform.ComputePrimValue(),
            transform.VMShapeLower(),
            tvm.transform.module_pass(lambda module, _: share_views(module), opt_level=0),
            transform.AttachGlobalSymbol(),
        ]
    )
