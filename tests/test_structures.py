"""The contract of `Structure`, held against every registered one: a new one needs no new test.

Each structure is tried as its own `candidates` propose it and in every value of its fields that
are a choice, on shapes that are odd, wide and tall.
"""

from __future__ import annotations

import dataclasses
import pickle
import typing
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from helpers import assert_close, one_node_model, run_onnx
from numpy.typing import NDArray
from undense.passes.errors import FitError, LoweringError, SchemeError
from undense.passes.linalg import fit_moment, relative_error
from undense.passes.scheme import parse_scheme
from undense.passes.stats import Stats, StatsAccumulator
from undense.passes.structures import structures
from undense.passes.structures.base import DOMAIN, Factors, Form, Structure
from undense.passes.structures.low_rank import LowRank
from undense.passes.structures.monarch import Monarch

FORMS: tuple[Form, ...] = ("fast", "portable")
SHAPES = ((48, 128), (7, 200), (60, 36), (1, 64))
BATCHES = ((), (1,), (3,), (2, 5), (2, 1, 3), (0,), (2, 0, 3))
EXTRA: tuple[Structure, ...] = (
    LowRank(rank=3),
    Monarch(in_blocks=8, out_blocks=3, rank=2),
    Monarch(in_blocks=2, out_blocks=4, ratio=0.3),
)
"""What neither candidates nor choices reach; tried where the shape admits it."""
ROOM_FIELDS = {"rank", "planes", "bits_"}
SITE = "block.3.weight"

Matrix = NDArray[np.float32]


def weight_of(shape: tuple[int, int], seed: int = 0) -> Matrix:
    """A matrix with a decaying spectrum and rows of different size."""
    rng = np.random.default_rng(seed)
    out_features, in_features = shape
    inner = min(shape)
    spectrum = 1 / np.sqrt(np.arange(1, inner + 1))
    left = rng.standard_normal((out_features, inner)) * spectrum
    scale = rng.uniform(0.2, 2, (out_features, 1))
    return (scale * (left @ rng.standard_normal((inner, in_features)))).astype(np.float32)


def stats_of(in_features: int, tokens: int | None = None, seed: int = 1) -> Stats:
    """Statistics of correlated rows; by default eight for each feature."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((in_features, in_features)) / np.sqrt(in_features)
    strength = 1 / np.sqrt(np.arange(1, in_features + 1))
    rows = rng.standard_normal((tokens or 8 * in_features, in_features)) * strength
    accumulator = StatsAccumulator(in_features)
    accumulator.update((rows @ mixing).astype(np.float32))
    return accumulator.result()


def variants(cls: type[Structure]) -> list[Structure]:
    """The default, and every value of a field that is a choice."""
    options = [cls()]
    for name, hint in typing.get_type_hints(cls).items():
        values: tuple[Any, ...] = (
            typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        )
        for value in (True, False) if hint is bool else values:
            try:
                options.append(dataclasses.replace(cls(), **{name: value}))  # type: ignore[type-var]
            except SchemeError:
                continue
    return options


def resolved(cls: type[Structure], shape: tuple[int, int]) -> list[Structure]:
    found = list(cls.candidates(*shape))
    for option in variants(cls) + [extra for extra in EXTRA if type(extra) is cls]:
        try:
            found.append(option.resolve(*shape, site=SITE))
        except FitError:
            continue
    return list(dict.fromkeys(found))


CASES = [
    pytest.param(structure, shape, id=f"{structure}-{shape[0]}x{shape[1]}")
    for cls in structures().values()
    for shape in SHAPES
    for structure in resolved(cls, shape)
]
FIRST_CASES = [
    pytest.param(structure, SHAPES[0], id=str(structure))
    for cls in structures().values()
    for structure in resolved(cls, SHAPES[0])
]
every_case = pytest.mark.parametrize(("structure", "shape"), CASES)
every_structure = pytest.mark.parametrize(("structure", "shape"), FIRST_CASES)
every_kind = pytest.mark.parametrize("cls", structures().values(), ids=structures().keys())


def fits_best(structure: Any) -> bool:
    """Whether it fits by its own best method, not by a published one kept for comparison."""
    return getattr(structure, "fit_", None) == getattr(type(structure)(), "fit_", None)


@cache
def fitted(structure: Structure, shape: tuple[int, int], *, data: bool = False) -> Factors:
    stats = stats_of(shape[1]) if data else None
    return structure.fit(weight_of(shape), stats, seed=0, site=SITE)


def error_of(structure: Structure, weight: Matrix, factors: Factors) -> float:
    return relative_error(weight, structure.dense(factors), None)


def runs_portable(structure: Structure, opset: int, *, gather: bool = False) -> bool:
    """Whether standard operators of this opset can say it; if not, the refusal names the node."""
    message = ""
    try:
        (structure.gather_function if gather else structure.function)("portable", opset)
    except LoweringError as error:
        message = str(error)
    assert not message or structure.kind in message or structure.op_type in message
    return not message


# Meaning: reference, function and function inlined are the same thing


def expected(
    structure: Structure, factors: Factors, x: NDArray[np.float32], form: Form
) -> NDArray[np.floating]:
    """The reference rounds activations where it is told to; the portable form never does."""
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


@pytest.mark.parametrize("opset", [11, 13, 14, 18, 20, 21, 23, 25])
@pytest.mark.parametrize("form", FORMS)
@every_structure
def test_function_runs_at_the_opset_of_the_model(
    structure: Structure, shape: tuple[int, int], form: Form, opset: int
) -> None:
    factors = fitted(structure, shape)
    if form == "portable" and not runs_portable(structure, opset):
        assert opset < 21
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
    if form == "portable" and not runs_portable(structure, 21, gather=True):
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


@every_case
def test_unpack_is_the_inverse_of_pack(structure: Structure, shape: tuple[int, int]) -> None:
    factors = fitted(structure, shape)
    again = structure.unpack(structure.pack(factors, "fast"), *shape)
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


# Fitting: repeatable, leaves its arguments alone, better with more room and with data


@pytest.mark.parametrize("data", [False, True], ids=["data-free", "calibrated"])
@every_structure
def test_fit_is_repeatable_and_changes_nothing(
    structure: Structure, shape: tuple[int, int], data: bool
) -> None:
    weight = weight_of(shape)
    stats = stats_of(shape[1]) if data else None
    weight.flags.writeable = False
    if stats is not None:
        stats.second_moment.flags.writeable = False
        stats.mean.flags.writeable = False
    first = structure.fit(weight, stats, seed=0, site=SITE)
    # Equal numbers in another memory layout and in a wider type are the same weight.
    again = structure.fit(np.asfortranarray(weight), stats, seed=0, site=SITE)
    wider = structure.fit(weight.astype(np.float64), stats, seed=0, site=SITE)
    for other in (again, wider):
        assert {name: factor.tobytes() for name, factor in other.items()} == {
            name: factor.tobytes() for name, factor in first.items()
        }
    for factor in first.values():
        assert factor.dtype in (np.float32, np.float16, np.int8)
        assert factor.flags.c_contiguous


@pytest.mark.parametrize(
    ("structure", "shape"), [case for case in CASES if fits_best(case.values[0])]
)
def test_statistics_do_not_make_the_output_worse(
    structure: Structure, shape: tuple[int, int]
) -> None:
    weight, moment = weight_of(shape), stats_of(shape[1]).second_moment
    free, calibrated = (
        relative_error(weight, structure.dense(fitted(structure, shape, data=data)), moment)
        for data in (False, True)
    )
    assert calibrated <= free * (1 + 8 * np.finfo(np.float32).eps)


@every_kind
def test_error_does_not_grow_with_room(cls: type[Structure]) -> None:
    shape = SHAPES[0]
    weight = weight_of(shape)
    families: dict[tuple[Any, ...], dict[int, float]] = {}
    for structure in resolved(cls, shape):
        fields: dict[str, Any] = dataclasses.asdict(structure)  # type: ignore[call-overload]
        for name in fields.keys() & ROOM_FIELDS:
            family = (name, *((key, value) for key, value in fields.items() if key != name))
            error = error_of(structure, weight, fitted(structure, shape))
            families.setdefault(family, {})[fields[name]] = error
    compared = [errors for errors in families.values() if len(errors) > 1]
    assert compared, "no two options differ in their room alone"
    for errors in compared:
        by_room = [errors[room] for room in sorted(errors)]
        assert by_room == sorted(by_room, reverse=True), errors


@pytest.mark.parametrize("data", [False, True], ids=["data-free", "calibrated"])
@pytest.mark.parametrize(
    ("structure", "shape"),
    [
        (LowRank(rank=7), (7, 20)),
        (LowRank(rank=7), (20, 7)),
        (LowRank(rank=1), (1, 1)),
        (Monarch(blocks=4, rank=3), (12, 20)),
        (Monarch(in_blocks=3, out_blocks=2, rank=3), (10, 9)),
        (Monarch(in_blocks=1, out_blocks=1, rank=9), (10, 9)),
        (Monarch(blocks=1, rank=1), (1, 1)),
    ],
    ids=str,
)
def test_full_rank_is_exact(structure: Structure, shape: tuple[int, int], data: bool) -> None:
    weight = weight_of(shape)
    stats = stats_of(shape[1]) if data else None
    factors = structure.fit(weight, stats, seed=0, site=SITE)
    assert_close(structure.dense(factors), weight, reduction=max(shape), dtype=np.float32)


# Degenerate input: a defined result, or an error that names the layer

BAD_WEIGHTS = {
    "nan": np.where(np.eye(48, 128) > 0, np.nan, 1),
    "infinite": np.where(np.eye(48, 128) > 0, np.inf, 1),
    "minus infinite": np.where(np.eye(48, 128) > 0, -np.inf, 1),
    "no rows": np.zeros((0, 128)),
    "no columns": np.zeros((48, 0)),
    "vector": np.ones(128),
    "scalar": np.ones(()),
    "kernel": np.ones((4, 4, 3, 3)),
}


@pytest.mark.parametrize("weight", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
@every_structure
def test_what_is_no_weight_is_refused_by_name(
    structure: Structure, shape: tuple[int, int], weight: NDArray[np.float64]
) -> None:
    with pytest.raises(FitError, match=SITE):
        structure.fit(weight.astype(np.float32), None, seed=0, site=SITE)


@every_structure
def test_statistics_that_do_not_fit_are_refused_by_name(
    structure: Structure, shape: tuple[int, int]
) -> None:
    weight, good = weight_of(shape), stats_of(shape[1])
    broken = Stats(np.full_like(good.second_moment, np.nan), good.mean, good.tokens)
    for stats in (stats_of(shape[1] - 1), broken):
        with pytest.raises(FitError, match=SITE):
            structure.fit(weight, stats, seed=0, site=SITE)


def odd_weights(shape: tuple[int, int]) -> dict[str, Matrix]:
    weight = weight_of(shape)
    no_rows, no_columns, loud, flat = (weight.copy() for _ in range(4))
    no_rows[::3] = 0
    no_columns[:, : shape[1] // 2] = 0
    loud[:, 5] *= 1000
    flat[:, : shape[1] // 2] = 0.75
    return {
        "zero": np.zeros_like(weight),
        "zero rows": no_rows,
        "zero groups": no_columns,
        "loud column": loud,
        "constant groups": flat,
        "tiny": weight * np.float32(1e-15),
        "huge": weight * np.float32(1e15),
        "all equal": np.full_like(weight, -0.75),
    }


def odd_statistics(in_features: int) -> dict[str, Stats | None]:
    good = stats_of(in_features)
    alive = np.ones(in_features)
    alive[::4] = 0
    scale = np.ones(in_features)
    scale[3] = 1000
    return {
        "none": None,
        "few tokens": stats_of(in_features, tokens=3),
        "dead channels": Stats(good.second_moment * np.outer(alive, alive), good.mean, good.tokens),
        "all dead": Stats(np.zeros_like(good.second_moment), np.zeros(in_features), good.tokens),
        "outlier channel": Stats(
            good.second_moment * np.outer(scale, scale), good.mean * scale, good.tokens
        ),
        "float32": Stats(
            good.second_moment.astype(np.float32), good.mean.astype(np.float32), good.tokens
        ),
    }


@pytest.mark.parametrize("statistics", odd_statistics(128).keys())
@every_structure
def test_degenerate_input_gives_a_sound_result(
    structure: Structure, shape: tuple[int, int], statistics: str
) -> None:
    stats = odd_statistics(shape[1])[statistics]
    moment = fit_moment(stats, shape[1], SITE)
    for name, weight in odd_weights(shape).items():
        factors = structure.fit(weight, stats, seed=0, site=SITE)
        assert all(np.isfinite(factor).all() for factor in factors.values()), name
        # No fit may be worse than leaving the layer out.
        assert relative_error(weight, structure.dense(factors), moment) <= 1, name
        zero_rows = structure.dense(factors)[~weight.any(axis=1)]
        bound = 8 * shape[1] * np.finfo(np.float32).eps * np.abs(weight).max()
        assert (np.abs(zero_rows) <= bound).all(), name


@every_structure
def test_engine_runs_degenerate_weights(structure: Structure, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(6).standard_normal((3, shape[1])).astype(np.float32)
    for weight in odd_weights(shape).values():
        factors = structure.fit(weight, None, seed=0, site=SITE)
        y = run_onnx(one_node_model(structure, factors, *shape), x=x)
        assert_close(y, structure.reference(factors, x), reduction=shape[1])


@pytest.mark.parametrize("shape", [(7, 13), (1, 1), (2, 3), (64, 1), (1, 50)], ids=str)
@every_kind
def test_awkward_shapes_fit_or_are_refused_by_name(
    cls: type[Structure], shape: tuple[int, int]
) -> None:
    for structure in variants(cls):
        chosen, message = structure, ""
        try:
            chosen = structure.resolve(*shape, site=SITE)
        except FitError as error:
            message = str(error)
        if message:
            assert SITE in message
            assert any(str(size) in message for size in shape)
            continue
        factors = chosen.fit(weight_of(shape), stats_of(shape[1]), seed=0, site=SITE)
        assert np.isfinite(chosen.dense(factors)).all()
        assert chosen.dense(factors).shape == shape
    for candidate in cls.candidates(*shape):
        assert candidate.resolve(*shape, site=SITE) == candidate


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
    assert parse_scheme(cls.kind) == cls()
    assert parse_scheme(f" {cls.kind} {{ }} ") == cls()
