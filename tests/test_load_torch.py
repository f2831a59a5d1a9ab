from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import undense
from helpers import assert_close
from torch import nn
from undense.frontend.bounds import dimension_bounds, index_bounds
from undense.frontend.dense import run_dense
from undense.frontend.load import load
from undense.frontend.torch_export import OPSET_VERSION
from undense.passes.errors import InputError, LoadError
from undense.passes.sites import find_sites
from undense.passes.text import show

BATCH = torch.export.Dim("batch", min=1, max=64)
LENGTH = torch.export.Dim("length", min=1, max=32)


class Tiny(nn.Module):
    """An embedding tied to the head, a two-layer block at rank 3, and a linear at rank 2."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32, bias=False)
        self.head = nn.Linear(32, 96, bias=False)
        self.head.weight = self.embed.weight
        self.pooled = nn.Linear(32, 48)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        x = self.embed(ids)
        x = x + self.down(nn.functional.gelu(self.up(x))) * mask[..., None].float()
        return {"logits": self.head(x), "both": (self.pooled(x.mean(1)), x)}


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def inputs(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length // 2 :] = 0
    return torch.randint(0, 96, (batch, length)), mask


DYNAMIC = {"ids": {0: BATCH, 1: LENGTH}, "mask": {0: BATCH, 1: LENGTH}}


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return load(tiny(), inputs(2, 5), DYNAMIC)


def test_parameters_keep_their_names(model: ir.Model) -> None:
    weights = {name for name in model.graph.initializers if "." in name}
    expected = {name for name, _ in tiny().named_parameters()}
    assert weights == expected
    sites, _ = find_sites(model)
    assert {site.name for site in sites} == {
        "embed.weight", "up.weight", "down.weight", "pooled.weight"
    }  # fmt: skip
    for site in sites:
        assert np.array_equal(site.weight(), tiny().get_parameter(site.name).detach().numpy())


def test_a_tied_weight_is_one_initializer(model: ir.Model) -> None:
    (tied,) = (site for site in find_sites(model)[0] if site.name == "embed.weight")
    assert {use.form for use in tied.uses} == {"gather", "matmul"}


def test_nothing_is_copied(model: ir.Model) -> None:
    module = tiny()
    captured = load(module, inputs(2, 5), DYNAMIC)
    with torch.no_grad():
        module.up.weight.fill_(3)
    tensor = captured.graph.initializers["up.weight"].const_value
    assert tensor is not None
    assert (tensor.numpy() == 3).all()


def test_dimensions_and_bounds_survive_by_name(model: ir.Model) -> None:
    assert [str(value.shape) for value in model.graph.inputs] == ["[batch,length]"] * 2
    assert [str(v.shape) for v in model.graph.outputs] == [
        "[batch,length,96]", "[batch,48]", "[batch,length,32]"
    ]  # fmt: skip
    assert json.loads(model.metadata_props["undense.dim_bounds"]) == {
        "batch": [1, 64], "length": [1, 32]
    }  # fmt: skip
    assert dimension_bounds(model) == {"batch": (1, 64), "length": (1, 32)}
    assert index_bounds(model) == {"ids": (0, 95)}
    assert model.opset_imports[""] == OPSET_VERSION


def test_outputs_are_named_by_the_keys_that_lead_to_them(model: ir.Model) -> None:
    assert [value.name for value in model.graph.outputs] == ["logits", "both_0", "both_1"]


@pytest.mark.parametrize(("batch", "length"), [(2, 5), (1, 1), (3, 32)])
def test_outputs_equal_those_of_pytorch(model: ir.Model, batch: int, length: int) -> None:
    ids, mask = inputs(batch, length)
    with torch.no_grad():
        expected = tiny()(ids, mask)
    (got,) = run_dense(model, [{"ids": ids.numpy(), "mask": mask.numpy()}])
    assert_close(got["logits"], expected["logits"], reduction=64 + 32 + 32)
    assert_close(got["both_0"], expected["both"][0], reduction=64 + 32 + 32 + length)


def test_every_value_has_its_type_and_shape(model: ir.Model) -> None:
    for node in model.graph:
        for value in node.outputs:
            assert value.dtype is not None
            assert value.shape is not None


def same(a: ir.Model, b: ir.Model) -> None:
    assert [(n.op_type, [v.name for v in n.outputs]) for n in a.graph] == [
        (n.op_type, [v.name for v in n.outputs]) for n in b.graph
    ]
    assert list(a.graph.initializers) == list(b.graph.initializers)


def test_keyword_arguments_programs_and_pt2_files_give_the_same(
    model: ir.Model, tmp_path: Path
) -> None:
    ids, mask = inputs(2, 5)
    same(load(tiny(), {"ids": ids, "mask": mask}, DYNAMIC), model)
    program = torch.export.export(tiny(), (ids, mask), dynamic_shapes=DYNAMIC)
    same(load(program, dynamic_shapes=DYNAMIC), model)
    torch.export.save(program, tmp_path / "tiny.pt2")
    stored = load(tmp_path / "tiny.pt2", dynamic_shapes=DYNAMIC)
    same(stored, model)
    assert dimension_bounds(stored) == dimension_bounds(model)
    assert len(dimension_bounds(load(str(tmp_path / "tiny.pt2")))) == 2


class TwoLengths(nn.Module):
    """Something with two lengths, and an output as long as both."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 48)

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        return torch.cat([past, self.linear(x)], 1)


@pytest.mark.parametrize("saved", [False, True])
def test_dimensions_have_names_without_dynamic_shapes(saved: bool, tmp_path: Path) -> None:
    tokens, past = (torch.export.Dim(name, min=1, max=32) for name in ("tokens", "past"))
    dims = {"x": {0: BATCH, 1: tokens}, "past": {0: BATCH, 1: past}}
    given = (torch.ones(2, 3, 8), torch.ones(2, 5, 48))
    source: Any = torch.export.export(TwoLengths().eval(), given, dynamic_shapes=dims)
    names = ["batch", "tokens", "past"]
    if saved:
        torch.export.save(source, tmp_path / "cached.pt2")
        source, names = tmp_path / "cached.pt2", ["x_dim0", "x_dim1", "past_dim1"]
    batch, length, cached = names
    module = undense.compile(source, target="ort-cpu", output=tmp_path / "out")
    assert [info.shape for info in module.inputs] == [(batch, length, 8), (batch, cached, 48)]
    (output,) = module.outputs
    *ends, both = output.shape[0], output.shape[2], str(output.shape[1])
    assert (ends, sorted(both.split(" + "))) == ([batch, 48], sorted([length, cached]))
    bounds = {batch: (1, 64), length: (1, 32), cached: (1, 32)}
    assert module.manifest.dimension_bounds == bounds
    with pytest.raises(InputError, match=f"{length} "):
        module(np.ones((2, 33, 8), np.float32), np.ones((2, 5, 48), np.float32))
    text = show(load(source))
    assert not re.search(r"\bs\d+\b", text)


def test_bounds_that_nobody_gave_are_not_recorded() -> None:
    free = {"ids": {0: torch.export.Dim("n"), 1: torch.export.Dim.AUTO}, "mask": None}
    free["mask"] = free["ids"]
    captured = load(tiny(), inputs(2, 5), free)
    assert dimension_bounds(captured) == {}
    assert str(captured.graph.inputs[0].shape).startswith("[n,")


class Cached(nn.Module):
    """Keys of earlier calls are an input and an output, and may be none."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, past: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        keys = torch.cat([past[0], self.key(x)], 1)
        return {"scores": x @ keys.transpose(1, 2) + past[1].sum(), "present": keys}


def test_a_cache_may_be_empty() -> None:
    past = torch.export.Dim("past", min=0, max=16)
    shapes = {"x": {0: BATCH, 1: LENGTH}, "past": [{0: BATCH, 1: past}, None]}
    module = Cached().eval()
    args = (torch.ones(2, 3, 8), [torch.ones(2, 5, 8), torch.ones(2)])
    captured = load(module, args, shapes)
    assert [value.name for value in captured.graph.inputs] == ["x", "past_0", "past_1"]
    assert captured.graph.outputs[1].shape is not None
    total = captured.graph.outputs[1].shape[1]
    assert isinstance(total, ir.SymbolicDim)
    assert total.free_symbols() == {"past", "length"}
    for length, earlier in ((3, 5), (1, 0), (4, 0), (1, 1)):
        x, key, rest = torch.randn(1, length, 8), torch.randn(1, earlier, 8), torch.randn(2)
        with torch.no_grad():
            expected = module(x, [key, rest])
        feed = {"x": x.numpy(), "past_0": key.numpy(), "past_1": rest.numpy()}
        (got,) = run_dense(captured, [feed])
        assert_close(got["scores"], expected["scores"], reduction=8 + 8 + 2)
        assert_close(got["present"], expected["present"], reduction=8)


def test_modules_that_cannot_be_captured() -> None:
    with pytest.raises(LoadError, match=r"Tiny: .*give example inputs"):
        load(tiny())
    partly = tiny()
    partly.up.train()
    with pytest.raises(LoadError, match=r"Tiny: up is in training mode; call \.eval\(\)"):
        load(partly, inputs(2, 5))

    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(LoadError, match=r"Branches: torch\.export failed: "):
        load(Branches().eval(), (torch.ones(2),))


def test_pt2_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.pt2: there is no such file"):
        load(tmp_path / "none.pt2")
    (tmp_path / "bad.pt2").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(LoadError, match=r"bad\.pt2: not a program"):
        load(tmp_path / "bad.pt2")


def test_an_onnx_file_is_loaded_without_torch() -> None:
    code = (
        "import sys, undense.frontend.load as f\n"
        "try: f.load('none.onnx')\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["LoadError", "False"]
