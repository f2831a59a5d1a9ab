"""One small model for each way in which a graph applies a dense weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from graphs import graph, normal
from numpy.typing import NDArray

OUT, IN = 48, 32
W, WT = normal(OUT, IN), normal(IN, OUT)
BIAS = normal(OUT, seed=1)


@dataclass(frozen=True, eq=False)
class Form:
    """A graph in onnx text, its weights, and the shape of its input x.

    Attributes:
        weight: `[OUT, IN]` as `Site.weight` must give it.
        dtype: of x, and of what the graph computes in.
        adapters: the operators around the structured node, in order.
    """

    text: str
    weights: dict[str, NDArray[Any]]
    x: tuple[int, ...]
    weight: NDArray[Any]
    adapters: tuple[str, ...] = ()
    dtype: Any = np.float32

    def model(self) -> ir.Model:
        """The graph with its weights."""
        return graph(self.text, **self.weights)

    def feeds(self) -> dict[str, NDArray[Any]]:
        """One input."""
        return {"x": normal(*self.x, seed=2, dtype=self.dtype)}


def _gemm(attributes: str, x: str, inputs: str, **weights: NDArray[Any]) -> tuple[str, Any]:
    return f"g (float[{x}] x) => (float[b,{OUT}] y) {{ y = Gemm{attributes}({inputs}) }}", weights


def _form(gemm: tuple[str, Any], x: tuple[int, ...], weight: Any, *adapters: str) -> Form:
    return Form(*gemm, x, weight, adapters)


FORMS: dict[str, Form] = {
    "matmul": Form(
        "g (float[b,s,32] x) => (float[b,s,48] y) { y = MatMul(x, w) }", {"w": WT}, (2, 3, IN), WT.T
    ),
    "matmul_add": Form(
        "g (float[b,32] x) => (float[b,48] y) { h = MatMul(x, w)  y = Add(h, c) }",
        {"w": WT, "c": BIAS},
        (3, IN),
        WT.T,
        ("Add",),
    ),
    "matmul_vector": Form(
        "g (float[32] x) => (float[48] y) { y = MatMul(x, w) }",
        {"w": WT},
        (IN,),
        WT.T,
        ("Constant", "Reshape", "Constant", "Reshape"),
    ),
    "left_matmul": Form(
        "g (float[b,32,n] x) => (float[b,48,n] y) { y = MatMul(w, x) }",
        {"w": W},
        (2, IN, 5),
        W,
        ("Transpose", "Transpose"),
    ),
    "left_matmul_vector": Form(
        "g (float[32] x) => (float[48] y) { y = MatMul(w, x) }",
        {"w": W},
        (IN,),
        W,
        ("Constant", "Reshape", "Constant", "Reshape"),
    ),
    "gemm": _form(_gemm("", "b,32", "x, w", w=WT), (3, IN), WT.T),
    "gemm_trans_b_bias": _form(
        _gemm("<transB=1>", "b,32", "x, w, c", w=W, c=BIAS), (3, IN), W, "Add"
    ),
    "gemm_trans_a": _form(_gemm("<transA=1>", "32,b", "x, w", w=WT), (IN, 3), WT.T, "Transpose"),
    "gemm_alpha_beta": _form(
        _gemm("<alpha=2.0, beta=0.5>", "b,32", "x, w, c", w=WT, c=BIAS),
        (3, IN),
        WT.T,
        *("Constant", "Mul", "Constant", "Mul", "Add"),
    ),
    "gemm_beta_zero": _form(_gemm("<beta=0.0>", "b,32", "x, w, c", w=WT, c=BIAS), (3, IN), WT.T),
    "gemm_scalar_bias": _form(
        _gemm("", "b,32", "x, w, c", w=WT, c=np.asarray(0.5, np.float32)), (3, IN), WT.T, "Add"
    ),
    "gemm_column_bias": _form(
        _gemm("", "3,32", "x, w, c", w=WT, c=normal(3, 1)), (3, IN), WT.T, "Add"
    ),
    "gemm_left": Form(
        "g (float[32,n] x) => (float[48,n] y) { y = Gemm<transA=1>(w, x, c) }",
        {"w": WT, "c": normal(OUT, 1)},
        (IN, 5),
        WT.T,
        ("Transpose", "Transpose", "Add"),
    ),
    "gemm_left_trans_b": Form(
        "g (float[n,32] x) => (float[48,n] y) { y = Gemm<transB=1>(w, x) }",
        {"w": W},
        (5, IN),
        W,
        ("Transpose",),
    ),
    "conv_2d": Form(
        "g (float[b,32,h,k] x) => (float[b,48,h,k] y) { y = Conv<kernel_shape=[1,1]>(x, w, c) }",
        {"w": W[:, :, None, None], "c": BIAS},
        (2, IN, 3, 4),
        W,
        ("Transpose", "Add", "Transpose"),
    ),
    "conv_1d": Form(
        'g (float[b,32,n] x) => (float[b,48,n] y) { y = Conv<auto_pad="SAME_UPPER">(x, w) }',
        {"w": W[:, :, None]},
        (2, IN, 5),
        W,
        ("Transpose", "Transpose"),
    ),
    "behind_transpose": Form(
        "g (float[b,32] x) => (float[b,48] y) { t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t) }",
        {"w": W},
        (3, IN),
        W,
    ),
    "behind_chain": Form(
        "g (float[b,32] x) => (float[b,48] y) "
        "{ a = Identity(w)  t = Transpose(a)  u = Cast<to=1>(t)  y = MatMul(x, u) }",
        {"w": W.astype(np.float16)},
        (3, IN),
        W.astype(np.float16),
    ),
    "behind_bfloat16": Form(
        "g (float[b,32] x) => (float[b,48] y) { u = Cast<to=1>(w)  y = MatMul(x, u) }",
        {"w": WT.astype(ml_dtypes.bfloat16)},
        (3, IN),
        WT.astype(ml_dtypes.bfloat16).T,
    ),
    "rounded_to_half": Form(
        "g (float[b,32] x) => (float[b,48] y) "
        "{ h = Cast<to=10>(w)  u = Cast<to=1>(h)  y = MatMul(x, u) }",
        {"w": WT},
        (3, IN),
        WT.astype(np.float16).T,
    ),
    "double": Form(
        "g (double[b,32] x) => (double[b,48] y) { y = MatMul(x, w) }",
        {"w": WT.astype(np.float64)},
        (3, IN),
        WT.T,
        ("Cast", "Cast"),
        np.float64,
    ),
    "half": Form(
        "g (float16[b,32] x) => (float16[b,48] y) { y = Gemm<transB=1, alpha=2.0>(x, w, c) }",
        {"w": W.astype(np.float16), "c": BIAS.astype(np.float16)},
        (3, IN),
        W.astype(np.float16),
        ("Cast", "Cast", "Constant", "Mul", "Add"),
        np.float16,
    ),
}
