"""Tilings of products for GPUs: kinds, records, and the candidates that can be launched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from test_tuning_database import RECORD as CPU_RECORD
from undense.backend.cuda.limits import shared_limit
from undense.backend.cuda.nvcc import Resources
from undense.backend.kernels.cuda.dtypes import activation
from undense.backend.kernels.cuda.few_rows import FewRowsTiling
from undense.backend.kernels.cuda.fragments import row_tiles
from undense.backend.kernels.cuda.many_rows import ManyRowsTiling
from undense.backend.kernels.cuda.product import Product, Scatter
from undense.backend.kernels.cuda.products import MANY, Ruled, chosen
from undense.backend.kernels.cuda.warpgroup_rows import WarpgroupRowsTiling
from undense.backend.kernels.cuda.weights import Coded, Dense
from undense.backend.kernels.targets import asked, tuned
from undense.backend.target import Target
from undense.backend.tuning import choose
from undense.backend.tuning import record as record_module
from undense.backend.tuning.choose import choose_records
from undense.backend.tuning.cuda.candidates import sources
from undense.backend.tuning.cuda.limits import fits
from undense.backend.tuning.database import add_records
from undense.backend.tuning.record import versions
from undense.passes.errors import LoweringError

TARGET = "cuda -arch=sm_90"
HALF = activation("float16")
assert HALF is not None
CODES = Product.plain(HALF, Coded(HALF, 4, 8, 64), 64, 128)
RECORD = dataclasses.replace(
    CPU_RECORD, processor="sm_90", kind="cuda dense float16", versions=versions("cuda")
)

# The part of TVM that makes CUDA modules comes into a process once: here the emulation's.
makes_modules = pytest.mark.usefixtures("cuda_device")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path / "cache"))


def test_rules_take_their_records() -> None:
    fields = {"warps": 4, "tiles": 1}
    with tuned({(*CODES.workload, 16): fields}), asked() as found:
        rules = chosen(CODES)
    own = Ruled(CODES)
    assert found == {("cuda codes4 group64 float16", 64, 128): own}
    assert [
        tiling == own.serving(rows) for (_, tiling), rows in zip(rules, own.rows, strict=True)
    ] == [*(True, False, True, True)]
    assert (rules[1][1].warps, rules[1][1].tiles) == (4, 1)
    with (
        tuned({(*CODES.workload, MANY): {"ahead": 1}}),
        pytest.raises(
            LoweringError, match=r"64x128 for 2048 rows does not fit .* 'ahead'.*without tuned"
        ),
    ):
        chosen(CODES)


def test_kinds_name_what_speed_depends_on() -> None:
    assert HALF is not None
    dense = Product.plain(HALF, Dense(HALF), 32, 64)
    assert dense.workload == ("cuda dense float16", 32, 64)
    blocks = dataclasses.replace(dense, blocks=4, scatter=Scatter(8, 32))
    assert blocks.workload[0] == "cuda dense float16 blocks4 permuted"
    two = Product.plain(HALF, Coded(HALF, 2, 1, 32, 2), 32, 64)
    assert two.workload[0] == "cuda codes2 group32 planes2 float16"


@pytest.mark.parametrize(
    ("rows", "fields", "cause"),
    [
        (8, {"warps": 0}, "warps is 0 and no whole number from 1 on"),
        (8, {"ahead": 1}, "ahead is 1 and no whole number from 2 on"),
        (8, {"tiles": -1}, "tiles is -1 and"),
        (8, {"eights": 1.5}, r"eights is 1\.5 and"),
        (8, {"warps": True}, "warps is True and"),
        (8, {"warps": 33}, "a block has 33 warps, and 32 at most"),
        (8, {"warps": 32, "tiles": 4}, r"589824 bytes of shared memory, and 232448 at most"),
        (64, {"stages": 1}, "stages is 1 and no whole number from 2 on"),
        (64, {"row_warps": "2"}, "row_warps is '2' and"),
        (64, {"column_warps": 40}, "a block has 40 warps, and 32 at most"),
        (MANY, {"stages": 40}, "bytes of shared memory, and 232448 at most"),
    ],
)
def test_a_record_of_no_tiling_is_refused(rows: int, fields: dict[str, Any], cause: str) -> None:
    kind, outputs, inputs = CODES.workload
    found = dataclasses.replace(
        RECORD, kind=kind, out_features=outputs, in_features=inputs, rows=rows, fields=fields
    )
    add_records([found])
    target = Target.parse(TARGET)
    message = f"of {kind} 64x128 for {rows} rows does not fit its tiling .*{cause}.*without tuned"
    with (
        target.tvm(),
        tuned(choose_records(target).fields),
        pytest.raises(LoweringError, match=message),
    ):
        chosen(CODES)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"height": 192}, "height is 192 and no multiple of 128"),
        ({"stages": 2}, "stages is 2 and no whole number from 3 on"),
        ({"warpgroups": 9}, "a block has 36 warps, and 32 at most"),
        ({"stages": 12}, "bytes of shared memory, and 232448 at most"),
    ],
)
def test_a_record_of_no_tiling_of_warpgroups_is_refused(fields: dict[str, Any], cause: str) -> None:
    with (
        Target.parse("cuda -arch=sm_90a").tvm(),
        tuned({(*CODES.workload, MANY): fields}),
        pytest.raises(LoweringError, match=f"for {MANY} rows does not fit its tiling .*{cause}"),
    ):
        chosen(CODES)


def test_a_block_has_the_shared_memory_that_all_architectures_have() -> None:
    large = {(*CODES.workload, 8): {"warps": 8, "tiles": 4, "ahead": 8}}
    one, both = (Target.parse(f"cuda -arch={names}") for names in ("sm_80", "sm_80,sm_86"))
    with one.tvm(), tuned(large):
        assert chosen(CODES)[0][1].shared_bytes(CODES.weights) == 144 * 1024
    with both.tvm(), tuned(large), pytest.raises(LoweringError, match=r"147456 .* 101376 at most"):
        chosen(CODES)


@makes_modules
@pytest.mark.parametrize("rows", Ruled(CODES).rows)
def test_candidates_differ_and_have_a_place_in_shared_memory(rows: int) -> None:
    target = Target.parse("cuda -arch=sm_80,sm_90")
    found = sources(Ruled(CODES), rows, target, trials=6, seed=0)
    assert found[0].fields == {}
    assert len(found) == 7
    assert len({source.text for source in found}) == 7
    assert all(source.launch.shared_bytes <= 163 * 1024 for source in found)
    assert found == sources(Ruled(CODES), rows, target, trials=6, seed=0)
    tiling = Ruled(CODES).serving(rows)
    blocks = found[0].launch.grid
    if isinstance(tiling, FewRowsTiling):
        assert blocks == (-(-row_tiles(CODES.width) // tiling.tiles), 1, 1)
        assert found[0].launch.shared_bytes == tiling.shared_bytes(CODES.weights)
    else:
        assert isinstance(tiling, ManyRowsTiling)
        assert blocks[0] == -(-rows // tiling.height)
        assert found[0].launch.shared_bytes == tiling.shared_bytes(CODES.weights)


@makes_modules
@pytest.mark.parametrize("rows", [512, MANY])
def test_candidates_of_warpgroups_have_a_place_on_hopper(rows: int) -> None:
    wide = dataclasses.replace(CODES, width=4096, columns=4096)
    ruled, target = Ruled(wide, warpgroups=True), Target.parse("cuda -arch=sm_90a")
    found = sources(ruled, rows, target, trials=4, seed=0)
    tiling = ruled.serving(rows)
    assert isinstance(tiling, WarpgroupRowsTiling)
    assert found[0].launch.grid[0] == -(-rows // tiling.height)
    assert found[0].launch.shared_bytes == tiling.shared_bytes(CODES.weights)
    assert len({source.text for source in found}) == 5
    assert all(source.launch.shared_bytes <= 227 * 1024 for source in found)


def test_what_a_multiprocessor_has_no_place_for() -> None:
    used = Resources("candidate", "sm_90", 128, 0, 0, 0)
    assert fits([used], 512)
    assert not fits([used], 513)
    assert not fits([used, dataclasses.replace(used, spilled_bytes=4)], 32)
    assert shared_limit(["sm_90"]) == 227 * 1024
    assert shared_limit(["sm_80", "sm_90a"]) == 163 * 1024
    assert shared_limit(["sm_86"]) == 99 * 1024


def test_shipped_records_are_for_the_very_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    family = choose.Family("sm_90", frozenset({"sm_90"}), True, "a GPU", (RECORD,))
    monkeypatch.setattr(choose, "families", lambda: (family,))
    assert choose_records(Target.parse(TARGET)).fields == {RECORD.key: RECORD.fields}
    assert not choose_records(Target.parse("cuda -arch=sm_80,sm_90")).fields
    assert not choose_records(Target.parse("llvm")).fields
    mine = dataclasses.replace(RECORD, fields={"tiles": 1})
    add_records([mine, dataclasses.replace(mine, processor="sm_80", rows=16)])
    assert choose_records(Target.parse(TARGET)).fields == {mine.key: mine.fields}


def test_a_new_kernel_of_one_device_leaves_the_records_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = (CPU_RECORD, RECORD)
    assert [record.current for record in records] == [True, True]
    monkeypatch.setattr(record_module, "SCHEDULES", {**record_module.SCHEDULES, "cuda": 99})
    assert [record.current for record in records] == [True, False]
