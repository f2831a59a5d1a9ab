"""What `plan` and `compile` are given is refused in one sentence where it is of another type."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import undense
from graphs import graph, normal
from undense.backend.kernel_times import Time
from undense.backend.kernel_times.whole_run import Latency
from undense.candidate import Candidate
from undense.passes.budget import Budget
from undense.passes.progress import silent
from undense.runtime.artifact import Artifact
from undense.runtime.session import Session


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": "1,32"}, "batch '1,32': give whole numbers of 1 or more"),
        ({"batch": 2.5}, "batch 2.5: give whole numbers"),
        ({"batch": [True]}, r"batch \[True\]: give whole numbers"),
        ({"plan_time": "5"}, "plan time '5': give seconds"),
        ({"point": "2"}, "point '2': points are counted from 1"),
        ({"budget": ["size_ratio"]}, r"budget \['size_ratio'\]: give a mapping"),
        ({"cache": 3}, "cache is a int; give a folder, True or False"),
        ({"ignored_scope": "w"}, "ignored patterns 'w': give a list of patterns"),
    ],
)
def test_arguments_of_other_types_are_refused(options: dict[str, Any], said: str) -> None:
    model = graph("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }", w=normal(64, 64))
    with pytest.raises(undense.UndenseError, match=said):
        undense.plan(model, calibration_dataset=[normal(2, 64)], target="ort-cpu", **options)


def test_a_plan_of_another_type_is_refused() -> None:
    with pytest.raises(undense.UndenseError, match="plan is a dict; give a plan, or its path"):
        undense.compile("model.onnx", plan=cast(Any, {}))


def test_a_latency_that_was_planned_and_is_not_kept_is_told() -> None:
    taken = {8: Latency(Time(1.0, 1.0, 1.0, 5), Time(0.9, 0.9, 0.9, 5))}
    whole = cast(Any, SimpleNamespace(beside=lambda *_: (taken, [])))

    def warnings(**limits: float) -> list[str]:
        candidate = Candidate(cast(Artifact, None), cast(Session, None))
        candidate.latency(whole, Budget(**limits), silent)
        return candidate.warnings

    assert warnings(latency_ratio=0.9) == warnings(max_drop=0.1) == []
    assert warnings(latency_ratio=0.5) == [
        "latency_ratio=0.5 was planned and is not kept: at batch 8 a run takes 0.90 times that of "
        "the dense model"
    ]
