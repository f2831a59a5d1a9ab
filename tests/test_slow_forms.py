"""What will run slower than dense in ONNX Runtime is said, and what will not is not."""

from __future__ import annotations

import pytest
from forms import FORMS
from graphs import replaced
from undense.backend.onnx_runtime import slow_forms


def warnings(form: str, scheme: str) -> list[str]:
    """The sentences about a small model."""
    return slow_forms(replaced(FORMS[form].model(), scheme), "fast")


@pytest.mark.parametrize(
    ("form", "scheme", "cause"),
    [
        ("matmul", "int_codes{bits=8,group=32,activations=float}", "8-bit codes with float"),
        ("matmul", "trit_planes{planes=1,group=32,activations=float}", "2-bit codes with float"),
        ("matmul", "trit_planes{planes=3,group=32,activations=int8}", "2 sums of codes"),
        ("matmul", "trit_planes{tied=false,group=32,activations=int8}", "2 sums of codes"),
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
        "low_rank{ratio=0.75}",
        "monarch{ratio=0.5}",
    ],
)
def test_fast_forms_draw_no_warning(scheme: str) -> None:
    assert warnings("matmul", scheme) == []
    assert warnings("gemm_trans_a", scheme) == []
