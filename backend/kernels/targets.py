"""How kernels are cut up: ordered rules for families of CPUs, and records that replace fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar

from tvm.target import Target
from tvm.target.codegen import target_has_features

from ...passes.errors import LoweringError
from .code_task import CodeTiling
from .dots import Dots
from .gemm import FloatTiling


class Tiling(Protocol):
    """How a kernel is cut up."""

    def serving(self, rows: int) -> Self:
        """The tiling for up to so many rows."""


T = TypeVar("T", bound=Tiling)


def float_avx512(target: Target) -> FloatTiling | None:
    """6 rows of 4 panels: 24 sums and 4 weights in 32 registers."""
    if not target_has_features("avx512bw", target):
        return None
    return FloatTiling((4, 4, 4, 4, 4, 4))


def float_avx2(target: Target) -> FloatTiling | None:
    """6 rows of one panel of two registers: 12 sums in 16 registers."""
    if not target_has_features("avx2", target):
        return None
    return FloatTiling((4, 2, 2, 1, 1, 1))


def float_any(target: Target) -> FloatTiling | None:
    """As for AVX2."""
    return FloatTiling()


FLOAT_RULES = (float_avx512, float_avx2, float_any)

ROWS = (1, 8, 32, 128)
"""Numbers of rows that a tiling is chosen for: it serves up to that many, the last one all."""

Key = tuple[str, int, int, int]
"""Kind of the kernel, outputs, inputs, and one of `ROWS`."""

Records = Mapping[Key, Mapping[str, Any]]
"""Fields of tilings that were found by measuring on the target."""

_records: ContextVar[Records] = ContextVar("records", default={})  # noqa: B039 (never written to)

Workload = tuple[str, int, int]
"""Kind of the kernel, outputs and inputs."""

_asked: ContextVar[dict[Workload, Any] | None] = ContextVar("asked", default=None)


@contextmanager
def tuned(records: Records) -> Iterator[None]:
    """Kernels that are made meanwhile take these fields instead of the rule's."""
    token = _records.set(records)
    try:
        yield
    finally:
        _records.reset(token)


@contextmanager
def asked() -> Iterator[dict[Workload, Any]]:
    """The kernels that ask for tilings meanwhile, each with the rule's own tiling."""
    around, found = _asked.get(), dict[Workload, Any]()
    token = _asked.set(found)
    try:
        yield found
    finally:
        _asked.reset(token)
        if around is not None:
            around.update(found)


def float_tiling() -> FloatTiling:
    """The tiling of a product of floats by the first rule that knows `Target.current()`."""
    return _first(FLOAT_RULES)


def code_vnni(target: Target) -> CodeTiling | None:
    """32 registers of 16 int32, and an instruction that multiplies and adds four bytes."""
    if not target_has_features("avx512vnni", target):
        return None
    return _code_avx512(target, Dots("vnni", 16))


def code_avx512(target: Target) -> CodeTiling | None:
    """The same without that instruction."""
    return _code_avx512(target, Dots("madd", 16))


def _code_avx512(target: Target, dots: Dots) -> CodeTiling | None:
    floats = float_avx512(target)
    if floats is None:
        return None
    table = "llvm.x86.avx512.permvar.sf.512"
    return CodeTiling(dots, floats, panels=(4, 4, 4, 4, 4, 4), table=table)


def code_avx2(target: Target) -> CodeTiling | None:
    """16 registers of 8 int32: 8 sums, and none to spare for a second chain of a single row."""
    floats = float_avx2(target)
    if floats is None:
        return None
    return CodeTiling(Dots("madd", 8), floats, panels=(4, 2, 1, 1), chains=1)


def code_any(target: Target) -> CodeTiling | None:
    """Plain vector code, which LLVM cuts to the registers that there are."""
    return CodeTiling(Dots(), FloatTiling())


CODE_RULES = (code_vnni, code_avx512, code_avx2, code_any)


def code_choices(kind: str, out_features: int, in_features: int) -> Choices[CodeTiling]:
    """The tilings of a product of codes with the fields of its records."""
    return choices(_first(CODE_RULES), kind, out_features, in_features)


def _first(rules: Sequence[Callable[[Target], T | None]]) -> T:
    """The answer of the first rule that knows `Target.current()`; without one, of the last rule.

    Raises:
        LoweringError: the target is not a CPU.
    """
    target = Target.current(allow_none=True) or Target({"kind": "llvm"})
    if target.kind.name != "llvm":
        raise LoweringError(
            f"there are no kernels for {target.kind.name}; choose target llvm or cuda"
        )
    return next(found for rule in rules if (found := rule(target)) is not None)


Choices = tuple[tuple[int | None, T], ...]
"""Tilings in order, each with the greatest number of rows that it serves; the last one all."""


def float_choices(kind: str, out_features: int, in_features: int) -> Choices[FloatTiling]:
    """The tilings of a kernel with the fields of its records."""
    return choices(float_tiling(), kind, out_features, in_features)


def choices(tiling: T, kind: str, out_features: int, in_features: int) -> Choices[T]:
    """A tiling with the fields of the records for each number of rows, equal ones joined.

    Kernels call it outside of what is cached: `asked` is told of every call.

    Raises:
        LoweringError: a record has a field that the tiling has not.
    """
    workload = (kind, out_features, in_features)
    tell(workload, tiling)
    found: list[tuple[int | None, T]] = []
    for rows in ROWS:
        own = recorded(tiling.serving(rows), (*workload, rows))
        if found and found[-1][1] == own:
            found.pop()
        found.append((rows, own))
    return (*found[:-1], (None, found[-1][1]))


def tell(workload: Workload, tiling: Any) -> None:
    """Tells `asked` of a kernel and its rule's own tiling."""
    if (told := _asked.get()) is not None:
        told[workload] = tiling


def recorded(tiling: Any, key: Key, check: Callable[[Any], None] | None = None) -> Any:
    """A rule's tiling with the fields of the record that there is for a key, if there is one.

    Args:
        tiling: of the rule.
        key: of the kernel and number of rows.
        check: raises ValueError for a tiling that cannot be used.

    Raises:
        LoweringError: the record has a field that the tiling has not, or a value that it cannot
            have.
    """
    fields = _records.get().get(key)
    if not fields:
        return tiling
    try:
        found = with_fields(tiling, fields)
        if check is not None:
            check(found)
    except (AttributeError, TypeError, ValueError) as error:
        kind, out_features, in_features, rows = key
        raise LoweringError(
            f"the tuning record of {kind} {out_features}x{in_features} for {rows} rows does not "
            f"fit its tiling ({error}): tune again, or compile without tuned tilings"
        ) from error
    return found


def with_fields(tiling: T, fields: Mapping[str, Any]) -> T:
    """A tiling with other values of some fields; a mapping gives those of a tiling within it."""
    values = {
        name: with_fields(getattr(tiling, name), value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
    }
    return replace(tiling, **values)  # type: ignore[type-var]
