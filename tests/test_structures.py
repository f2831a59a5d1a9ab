"""The contract of every structure: one meaning in numpy and ONNX, honest sizes, plain values."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from helpers import assert_close, one_node_model, run_onnx
from numpy.typing import NDArray
from structure_cases import (
    SHAPES,
    SITE,
    every_case,
    every_kind,
    every_structure,
    fitted,
)
from undense.passes.errors import LoweringError, SchemeError
from undense.passes.scheme import parse_scheme
from undense.passes.structures.base import DOMAIN, Factors, Form, Structure
from undense.passes.structures.low_rank import LowRank
from undense.passes.structures.residual import Residual

FORMS: tuple[Form, ...] = ("fast", "cuda", "portable")
LEAST_OPSETS = {"cuda": 15, "portable": 21}
BATCHES = ((), (1,), (3,), (2, 5), (2, 1, 3), (0,), (2, 0, 3))


def can_be_said(structure: Structure, form: Form, opset: int, *, gather: bool = False) -> bool:
    """Whether operators of this opset can say it in a form; if not, the refusal names the node."""
    message = ""
    try:
        (structure.gather_function if gather else structure.function)(form, opset)
    except LoweringError as error:
        message = str(error)
    # What a residual lacks is what its codes lack.
    named = structure.codes if isinstance(structure, Residual) else structure
    assert not message or named.kind in message or named.op_type in message
    return not message


# Meaning: reference, function and function inlined are the same thing


def expected(
    structure: Structure, factors: Factors, x: NDArray[np.float32], form: Form
) -> NDArray[np.floating]:
    """The reference rounds activations where it is told to; the other forms never do."""
    if form == "fast":
        return structure.reference(factors, x)
    return x.astype(np.float64) @ structure.dense(factors).T


@every_case
def test_reference_is_the_product_with_the_dense_matrix(
    structure: Structure, shape: tuple[int, int]
) -> None:
    factors = fitted(structure, shape)
    dense = structure.dense(factors)
    assert dense.shape == shape
    assert dense.dtype == np.float64
    x = np.random.default_rng(2).standard_normal((5, shape[1]))
    if getattr(structure, "activations", "float") == "int8":
        # Small integers are rounded to themselves if 127 is the largest of each block.
        x = np.random.default_rng(2).integers(-127, 128, (5, shape[1])).astype(np.float64)
        x[:, ::8] = 127
    for dtype in (np.float32, np.float64):
        y = structure.reference(factors, x.astype(dtype))
        assert y.dtype == dtype
        assert_close(y, x.astype(dtype) @ dense.T, reduction=shape[1], dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
@every_case
def test_function_computes_the_reference(
    structure: Structure, shape: tuple[int, int], form: Form
) -> None:
    factors = fitted(structure, shape)
    model = one_node_model(structure, factors, *shape, form=form)
    inlined = onnx.inliner.inline_local_functions(model)
    assert not inlined.functions
    if form == "portable":
        assert {node.domain for node in inlined.graph.node} <= {"", "ai.onnx"}
    rng = np.random.default_rng(3)
    for batch in BATCHES:
        x = rng.standard_normal((*batch, shape[1])).astype(np.float32)
        y = run_onnx(model, x=x)
        assert y.dtype == np.float32
        wanted = expected(structure, factors, x, form)
        assert_close(y, wanted, reduction=shape[1])
        assert_close(run_onnx(inlined, x=x), wanted, reduction=shape[1])


@pytest.mark.parametrize("opset", [11, 13, 18, 21, 25])
@pytest.mark.parametrize("form", FORMS)
@every_structure
def test_function_runs_at_the_opset_of_the_model(
    structure: Structure, shape: tuple[int, int], form: Form, opset: int
) -> None:
    factors = fitted(structure, shape)
    if form != "fast" and not can_be_said(structure, form, opset):
        assert opset < LEAST_OPSETS[form]
        return
    function = structure.function(form, opset)
    assert (function.domain, function.name) == (DOMAIN, structure.op_type)
    assert function.opset_imports[""] == opset
    model = one_node_model(
        structure, factors, *shape, form=form, opset=opset, leading=("batch", "sequence")
    )
    onnx.checker.check_model(model)
    x = np.random.default_rng(4).standard_normal((2, 3, shape[1])).astype(np.float32)
    wanted = expected(structure, factors, x, form)
    assert_close(run_onnx(model, x=x), wanted, reduction=shape[1])


@pytest.mark.parametrize("form", FORMS)
@every_case
def test_gather_reads_rows_from_the_tensors_of_the_product(
    structure: Structure, shape: tuple[int, int], form: Form
) -> None:
    if not structure.gathers:
        with pytest.raises(SchemeError, match=structure.kind):
            structure.gather_function(form, 21)
        return
    factors = fitted(structure, shape)
    if form == "portable" and not can_be_said(structure, form, 21, gather=True):
        return
    model = one_node_model(structure, factors, *shape, form=form, gather=True)
    rng = np.random.default_rng(5)
    for batch in ((), (1,), (4,), (2, 3), (0,)):
        indices = rng.integers(-shape[0], shape[0], batch)
        rows = run_onnx(model, x=indices)
        wanted = structure.reference_rows(factors, indices, np.dtype(np.float32))
        assert wanted.dtype == np.float32
        assert_close(rows, wanted, reduction=1)


# Storage


@pytest.mark.parametrize("form", FORMS)
@every_case
def test_unpack_is_the_inverse_of_pack(
    structure: Structure, shape: tuple[int, int], form: Form
) -> None:
    factors = fitted(structure, shape)
    again = structure.unpack(structure.pack(factors, form), *shape)
    assert list(again) == list(factors)
    for name, factor in factors.items():
        assert again[name].dtype == factor.dtype, name
        np.testing.assert_array_equal(again[name], factor, err_msg=name)


@every_case
def test_bits_are_those_of_the_stored_tensors(structure: Structure, shape: tuple[int, int]) -> None:
    tensors = structure.pack(fitted(structure, shape), "fast")
    assert structure.bits(*shape) == 8 * sum(tensor.nbytes for tensor in tensors.values())


@every_case
def test_macs_are_those_of_the_graph(structure: Structure, shape: tuple[int, int]) -> None:
    model = one_node_model(structure, fitted(structure, shape), *shape, form="portable")
    inlined = onnx.inliner.inline_local_functions(model)
    products = [node for node in inlined.graph.node if node.op_type == "MatMul"]
    names = [(node.input[0], node.output[0]) for node in products]
    tensors = {name for pair in names for name in pair} - {"x", "y"}
    for name in tensors:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        inlined.graph.output.append(value)
    session = onnxruntime.InferenceSession(
        inlined.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.ones((1, shape[1]), np.float32)
    outputs = [value.name for value in session.get_outputs()]
    sizes = dict(zip(outputs, session.run(None, {"x": x}), strict=True)) | {"x": x}
    assert structure.macs(*shape) == sum(
        sizes[result].size * sizes[operand].shape[-1] for operand, result in names
    )


# Values: schemes are text, hash, compare and travel


@every_case
def test_structure_is_a_value(structure: Structure, shape: tuple[int, int]) -> None:
    assert structure.resolve(*shape, site=SITE) == structure
    assert parse_scheme(str(structure)) == structure
    assert pickle.loads(pickle.dumps(structure)) == structure
    assert {structure: 1}[dataclasses.replace(structure)] == 1  # type: ignore[type-var]
    field = dataclasses.fields(structure)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(structure, field, 1)


@every_kind
def test_candidates_are_resolved_and_different(cls: type[Structure]) -> None:
    for shape in SHAPES:
        found = cls.candidates(*shape)
        assert len(set(found)) == len(found)
        for structure in found:
            assert structure.resolve(*shape, site=SITE) == structure
            assert structure.bits(*shape) > 0
    assert cls.candidates(768, 768)


@every_kind
def test_default_scheme_is_its_name(cls: type[Structure]) -> None:
    text = "int_codes{bits=4} + residual" if cls is Residual else cls.kind
    assert parse_scheme(text) == cls()
    assert parse_scheme(f" {text} {{ }} ") == cls()


# Timing: factors that mean nothing


@every_case
def test_random_factors_are_stored_like_fitted_ones(
    structure: Structure, shape: tuple[int, int]
) -> None:
    drawn, own = structure.random_factors(*shape, seed=0), fitted(structure, shape)
    assert [(name, factor.shape, factor.dtype) for name, factor in drawn.items()] == [
        (name, factor.shape, factor.dtype) for name, factor in own.items()
    ]
    unpacked = structure.unpack(structure.pack(drawn, "fast"), *shape)
    assert_close(structure.dense(unpacked), structure.dense(drawn), reduction=1)


@every_structure
def test_random_factors_are_those_of_their_seed(
    structure: Structure, shape: tuple[int, int]
) -> None:
    first, again = (structure.random_factors(*shape, seed=3) for _ in range(2))
    other = structure.random_factors(*shape, seed=4)
    for name, factor in first.items():
        np.testing.assert_array_equal(again[name], factor)
    assert any(not np.array_equal(other[name], factor) for name, factor in first.items())


def test_random_factors_of_a_structure_without_its_own_are_a_fit() -> None:
    structure = LowRank(rank=3)
    factors = Structure.random_factors(structure, 24, 40, seed=0)
    assert structure.dense(factors).shape == (24, 40)
    assert np.linalg.matrix_rank(structure.dense(factors), tol=1e-4) == 3
