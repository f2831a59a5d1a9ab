"""What will run slower than dense in ONNX Runtime is said, and what will not is not."""

from __future__ import annotations

import pytest
from forms import FORMS
from graphs import graph, normal, replaced
from undense.backend.onnx_runtime import slow_forms


def warnings(form: str, scheme: str) -> list[str]:
    """The sentences about a small model on a CPU."""
    return slow_forms(replaced(FORMS[form].model(), scheme), "fast")


def cuda_warnings(in_features: int, out_features: int, scheme: str) -> list[str]:
    """The sentences about one product on a GPU."""
    text = f"g (float[b,{in_features}] x) => (float[b,{out_features}] y) {{ y = MatMul(x, w) }}"
    model = graph(text, w=normal(in_features, out_features))
    return slow_forms(replaced(model, scheme, "cuda"), "cuda")


@pytest.mark.parametrize(
    ("form", "scheme", "cause"),
    [
        ("matmul", "int_codes{bits=8,group=32,activations=float}", "8-bit codes with float"),
        ("matmul", "trit_planes{planes=1,group=32,activations=float}", "2-bit codes with float"),
        ("matmul", "trit_planes{planes=3,group=32,activations=int8}", "2 sums of codes"),
        ("matmul", "trit_planes{tied=false,group=32,activations=int8}", "2 sums of codes"),
        (
            "matmul",
            "int_codes{bits=8,activations=float}+residual{rank=3}",
            "8-bit codes with float",
        ),
        ("matmul", "low_rank{rank=16,factor_bits=8}", "8-bit factors of low rank"),
        ("matmul", "monarch{ratio=0.75}", "Monarch with over 60% of the parameters"),
        ("conv_2d", "int_codes{bits=8,group=32,activations=int8}", "1×1 convolutions"),
        ("left_matmul", "low_rank{ratio=0.5}", "1×1 convolutions and W @ x"),
    ],
)
def test_slow_forms_are_named(form: str, scheme: str, cause: str) -> None:
    (sentence,) = warnings(form, scheme)
    assert sentence.startswith(cause)
    assert sentence.partition(": ")[2]


@pytest.mark.parametrize(
    "scheme",
    [
        "int_codes{bits=4,group=32,activations=int8}",
        "int_codes{bits=8,group=32,activations=int8}",
        "trit_planes{planes=2,group=32,activations=int8}",
        "int_codes{bits=4,group=32,activations=int8}+residual{rank=3}",
        "low_rank{ratio=0.75}",
        "monarch{ratio=0.5}",
    ],
)
def test_fast_forms_draw_no_warning(scheme: str) -> None:
    assert warnings("matmul", scheme) == []
    assert warnings("gemm_trans_a", scheme) == []


@pytest.mark.parametrize(("in_features", "out_features"), [(72, 48), (64, 44)])
@pytest.mark.parametrize(
    "scheme",
    [
        "int_codes{bits=4,group=32}",
        "trit_planes{planes=1}",
        "int_codes{bits=4,group=32}+residual{rank=3}",
        "low_rank{rank=16,factor_bits=8}",
    ],
)
def test_shapes_without_a_kernel_on_a_gpu_are_named(
    in_features: int, out_features: int, scheme: str
) -> None:
    (sentence,) = cuda_warnings(in_features, out_features, scheme)
    assert sentence.startswith("ONNX Runtime's CUDA provider, by its sources, multiplies codes")
    assert sentence.endswith(": w")


@pytest.mark.parametrize(
    "scheme",
    [
        "int_codes{bits=8}",
        "trit_planes{planes=3}",
        "trit_planes{tied=false,planes=3}",
        "int_codes{bits=8}+residual{rank=3}",
        "low_rank{rank=16,factor_bits=8}",
        "monarch{ratio=0.75}",
    ],
)
def test_what_was_measured_on_cpus_is_not_said_of_gpus(scheme: str) -> None:
    assert cuda_warnings(96, 48, scheme) == []
