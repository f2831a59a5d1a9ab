from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import exact, graph, normal, outputs
from helpers import assert_close
from undense.passes.check import check
from undense.passes.errors import PlanError
from undense.passes.nodes import structured_nodes
from undense.passes.plan import Choice, Plan
from undense.passes.replace import Fitted, ReplaceDense
from undense.passes.sites import Site, find_sites
from undense.passes.structures.base import Form, Structure, parse_function
from undense.passes.structures.int_codes import IntCodes
from undense.passes.structures.low_rank import LowRank
from undense.passes.structures.residual import Residual
from undense.passes.text import show

TIED = """g (int64[b,s] i) => (float[b,s,64] y) {
  e = Gather(emb, i)  t = Transpose<perm=[1,0]>(emb)  y = MatMul(e, t)
}"""
CHAIN = """g (float[b,32] x) => (float[b,32] y) {
  h = Gemm<transB=1>(x, up, c)  r = Relu(h)  y = MatMul(r, down)
}"""
CHAIN_WEIGHTS = {"up": normal(48, 32), "c": normal(48, seed=1), "down": normal(48, 32, seed=2)}


def chain() -> ir.Model:
    return graph(CHAIN, **CHAIN_WEIGHTS)


def fit(site: Site, structure: Structure) -> Fitted:
    resolved = structure.resolve(site.out_features, site.in_features, site=site.name)
    factors = resolved.fit(site.weight(), None, seed=0, site=site.name)
    return Fitted(resolved, resolved.pack(factors, "fast"))


def plan_of(model: ir.Model, fitted: Mapping[str, Fitted]) -> Plan:
    """Every site of the model: as it was fitted, or dense."""
    return Plan(
        tuple(
            Choice(
                site.name,
                site.in_features,
                site.out_features,
                str(fitted[site.name].structure) if site.name in fitted else "dense",
            )
            for site in find_sites(model)[0]
        )
    )


def replaced(model: ir.Model, **structures: Structure) -> ir.Model:
    sites = {site.name: site for site in find_sites(model)[0]}
    fitted = {name: fit(sites[name], structure) for name, structure in structures.items()}
    ReplaceDense(plan_of(model, fitted), fitted)(model)
    check(model)
    return model


def test_mixed_plan(golden: Callable[[str], None]) -> None:
    before = show(chain())
    after = show(replaced(chain(), up=LowRank(rank=4), down=IntCodes(bits_=8)))
    golden(f"{before}\n=== ReplaceDense ===\n\n{after}")


def test_residual(golden: Callable[[str], None]) -> None:
    before = show(chain())
    after = show(replaced(chain(), up=Residual(IntCodes(bits_=4, group=32), rank=4)))
    golden(f"{before}\n=== ReplaceDense ===\n\n{after}")


def test_tied_embedding(golden: Callable[[str], None]) -> None:
    model = graph(TIED, emb=normal(64, 32))
    before = show(model)
    graph_text = show(replaced(model, emb=IntCodes(bits_=8))).partition("\ndef ")[0]
    golden(f"{before}\n=== ReplaceDense ===\n\n{graph_text}")


def test_tied_embedding_reads_one_packed_tensor() -> None:
    table, i = normal(64, 32), np.array([[0, 63, -1, 7]])
    model = replaced(graph(TIED, emb=table), emb=IntCodes(bits_=8))
    gather, product = structured_nodes(model)
    assert gather.gathers
    assert not product.gathers
    assert gather.node.inputs[1:] == product.node.inputs[1:]
    structure = product.structure
    factors = structure.unpack(product.tensors, 64, 32)
    expected = structure.reference(factors, structure.reference_rows(factors, i, np.dtype("f4")))
    assert_close(outputs(model, i=i)["y"], expected, reduction=32 * 32)


def test_exact_factors_keep_outputs() -> None:
    model, x = chain(), normal(5, 32, seed=3)
    dense = outputs(model, x=x)
    fitted = {site.name: exact(site) for site in find_sites(model)[0]}
    ReplaceDense(plan_of(model, fitted), fitted)(model)
    assert_close(outputs(model, x=x)["y"], dense["y"], reduction=32 * 48)


def test_inputs_and_outputs_stay() -> None:
    before, model = chain(), replaced(chain(), up=LowRank(rank=4), down=LowRank(rank=4))
    for side in ("inputs", "outputs"):
        old, new = getattr(before.graph, side), getattr(model.graph, side)
        assert [(v.name, v.dtype, v.shape) for v in old] == [
            (v.name, v.dtype, v.shape) for v in new
        ]


def test_twice_is_once() -> None:
    model = chain()
    fitted = {site.name: fit(site, LowRank(rank=4)) for site in find_sites(model)[0]}
    run = ReplaceDense(plan_of(model, fitted), fitted)
    assert run(model).modified
    text = show(model)
    assert not run(model).modified
    assert show(model) == text


def test_what_was_replaced_is_refused_from_then_on() -> None:
    sites, refusals = find_sites(replaced(chain(), up=LowRank(rank=4)))
    assert [site.name for site in sites] == ["down"]
    assert [(item.name, item.reason) for item in refusals] == [
        ("up", "already structured: low_rank{rank=4}")
    ]


def test_dense_plan_changes_nothing() -> None:
    model, before = chain(), show(chain())
    assert not ReplaceDense(plan_of(model, {}), {})(model).modified
    assert show(model) == before


def test_metadata_and_names() -> None:
    model = chain()
    model.graph[0].name, model.graph[0].metadata_props["namespace"] = "/fc", "fc"
    replaced(model, up=LowRank(rank=4))
    (node,) = structured_nodes(model)
    assert node.node.name == "/fc"
    assert node.site == "up"
    assert node.structure == LowRank(rank=4)
    assert (node.out_features, node.in_features) == (48, 32)
    assert node.node.metadata_props["namespace"] == "fc"
    assert list(node.tensors) == ["down", "up"]


def test_shared_weight_is_stored_once() -> None:
    text = "g (float[b,32] x) => (float[b,32] y) { h = MatMul(x, w)  y = MatMul(h, w) }"
    model = replaced(graph(text, w=normal(32, 32)), w=LowRank(rank=4))
    assert sorted(model.graph.initializers) == ["w.down", "w.up"]
    first, second = structured_nodes(model)
    assert first.node.inputs[1:] == second.node.inputs[1:]
    assert len(model.functions) == 1


def test_half_embedding_gives_half_rows() -> None:
    text = "g (int64[n] i) => (float16[n,32] y) { y = Gather(w, i) }"
    table = normal(64, 32, dtype=np.float16)
    model = replaced(graph(text, w=table), w=IntCodes(bits_=8))
    (node,) = structured_nodes(model)
    rows = outputs(model, i=np.array([3, -1]))["y"]
    assert rows.dtype == np.float16
    expected = node.structure.reference_rows(node.factors(), np.array([3, -1]), np.dtype("f4"))
    assert_close(rows, expected, reduction=1, dtype=np.float16)


@dataclass(frozen=True)
class Scaled(LowRank):
    """Another body under the name of `LowRank`."""

    def function(self, form: Form, opset: int) -> ir.Function:
        text = "LowRank (x, down, up) => (y) { h = MatMul(x, down)  n = Neg(h)  y = MatMul(n, up) }"
        return parse_function(text, opset)


def test_another_body_gets_an_overload() -> None:
    model, x = chain(), normal(5, 32)
    sites = {site.name: site for site in find_sites(model)[0]}
    fitted = {
        "up": fit(sites["up"], LowRank(rank=32)),
        "down": Fitted(Scaled(rank=32), fit(sites["down"], LowRank(rank=32)).tensors),
    }
    expected = -outputs(model, x=x)["y"]
    ReplaceDense(plan_of(model, fitted), fitted)(model)
    assert [key[2] for key in model.functions] == ["", "2"]
    check(model)
    assert_close(outputs(model, x=x)["y"], expected, reduction=32 * 48)


def test_unused_functions_and_weights_go() -> None:
    model = replaced(chain(), up=LowRank(rank=4))
    assert sorted(model.graph.initializers) == ["c", "down", "up.down", "up.up"]
    assert [key[:2] for key in model.functions] == [("undense", "LowRank")]


def _choice(**changes: Any) -> Plan:
    values = {"name": "up", "in_features": 32, "out_features": 48, "scheme": "low_rank{rank=4}"}
    return Plan((Choice(**{**values, **changes}),))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (_choice(name="head"), r"^head: the model has no such site"),
        (_choice(out_features=64), r"^up: the plan was made for a weight of 64×32 .* has 48×32"),
        (_choice(), r"^up: low_rank\{rank=4\} was chosen, but nothing was fitted"),
    ],
)
def test_plan_that_does_not_fit(plan: Plan, message: str) -> None:
    model, before = chain(), show(chain())
    with pytest.raises(PlanError, match=message):
        ReplaceDense(plan, {})(model)
    assert show(model) == before


def test_embedding_in_a_structure_that_cannot_gather() -> None:
    model = graph(TIED, emb=normal(64, 32))
    (site,), _ = find_sites(model)
    for structure in (LowRank(rank=4), Residual(IntCodes(bits_=8), rank=4)):
        fitted = {"emb": fit(site, structure)}
        wanted = f"^emb: {re.escape(str(structure))} cannot gather rows"
        with pytest.raises(PlanError, match=wanted):
            ReplaceDense(plan_of(model, fitted), fitted)(model)
        assert not list(structured_nodes(model))


def test_name_that_is_taken() -> None:
    model = chain()
    ir.convenience.rename_values(model.graph.initializers["c"], "up.down")
    (site, _), _ = find_sites(model)
    with pytest.raises(PlanError, match=r"^up: the model already has a value 'up.down'"):
        ReplaceDense(_choice(), {"up": fit(site, LowRank(rank=4))})(model)
