from __future__ import annotations

from graphs import graph, normal
from undense.passes.canonicalize import CanonicalizeDense
from undense.passes.operators import operator_counts

LINEARS = """g (float[b,32] x, bool c) => (float[b,48] y) {
    h = MatMul(x, w)
    r = Relu(h)
    y = If (c) <then_branch = t () => (a) { a = Relu(r) }, else_branch = e () => (d) { d = Neg(r) }>
}"""


def test_operators_are_counted_by_name_in_inner_graphs_too():
    model = graph(LINEARS, w=normal(32, 48))
    assert operator_counts(model) == {"If": 1, "MatMul": 1, "Neg": 1, "Relu": 2}
    CanonicalizeDense(["w"])(model)
    assert operator_counts(model) == {"If": 1, "Neg": 1, "Relu": 2, "undense.Dense": 1}
    assert list(operator_counts(model)) == sorted(operator_counts(model))
