from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import graph, normal
from undense.passes.canonicalize import CanonicalizeDense
from undense.passes.check import check
from undense.passes.duplicates import MergeDuplicateWeights
from undense.passes.errors import PlanError
from undense.passes.pipeline import Pipeline
from undense.passes.plan import Choice, Plan
from undense.passes.replace import ReplaceDense

TEXT = "g (float[b,32] x) => (float[b,48] y) { y = MatMul(x, w) }"


def model() -> ir.Model:
    return graph(TEXT, w=normal(32, 48))


PIPELINE = Pipeline(
    (
        ("merge", MergeDuplicateWeights()),
        ("canonicalize", CanonicalizeDense(["w"])),
        ("restore", ReplaceDense(Plan((Choice("w", 32, 48, "dense"),)), {})),
    )
)


def test_hook_sees_each_pass_before_and_after() -> None:
    seen = []

    def hook(name: str, moment: str, model: ir.Model) -> None:
        check(model)
        seen.append((name, moment, [node.op_type for node in model.graph]))

    result = PIPELINE.run(model(), hook)
    assert result.modified
    assert seen == [
        ("merge", "before", ["MatMul"]),
        ("merge", "after", ["MatMul"]),
        ("canonicalize", "before", ["MatMul"]),
        ("canonicalize", "after", ["Dense"]),
        ("restore", "before", ["Dense"]),
        ("restore", "after", ["MatMul"]),
    ]


def test_without_a_hook() -> None:
    assert not Pipeline(PIPELINE.passes[:1]).run(model()).modified
    assert not Pipeline(()).run(model()).modified


def test_functional_passes_hand_on_their_model() -> None:
    original = model()
    copying = ir.passes.functionalize(CanonicalizeDense(["w"]))
    result = Pipeline((("copy", copying),)).run(original)
    assert [node.op_type for node in result.model.graph] == ["Dense"]
    assert [node.op_type for node in original.graph] == ["MatMul"]


def test_errors_come_through_as_they_are() -> None:
    with pytest.raises(PlanError, match=r"^v: the model has no such site"):
        Pipeline((("bad", CanonicalizeDense(["v"])),)).run(model())


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="two passes have the name 'merge'"):
        Pipeline((PIPELINE.passes[0], PIPELINE.passes[0]))
