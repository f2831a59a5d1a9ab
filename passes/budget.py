"""`size_ratio=0.25,max_drop=0.01` <-> `Budget`: what a plan may cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, Context

from .errors import SchemeError

BATCHES = (1, 32)
"""At which kernels are timed: a token that is decoded, and some lines of text."""

PLAN_SECONDS = 600.0
"""For measurements of distortion."""

_COSTS = ("size_ratio", "latency_ratio", "effective_bits")

TOLERANCE = 1e-9
"""Of a limit, by which a sum may pass it: the order in which it is added up changes less."""

DEFAULT_DROP = 0.01
"""Without any budget: a hundredth of the outputs' energy, or of a nat, may be lost."""


@dataclass(frozen=True)
class Budget:
    """Limits that hold together; None is no limit.

    Attributes:
        size_ratio: weights' bytes after over before, of the whole model.
        latency_ratio: time of a run after over before, on the target.
        effective_bits: stored bits of all sites over their number of weights.
        max_drop: of the validation metric; without one, of the distortion of the outputs.
    """

    size_ratio: float | None = None
    latency_ratio: float | None = None
    effective_bits: float | None = None
    max_drop: float | None = None

    @staticmethod
    def parse(given: Mapping[str, float] | str | None) -> Budget:
        """The budget of a mapping or of a text; none allows `DEFAULT_DROP` alone.

        Raises:
            SchemeError: an unknown key, or a value that is no positive number; lists the keys.
        """
        if given is None:
            return Budget(max_drop=DEFAULT_DROP)
        if not isinstance(given, str | Mapping):
            raise SchemeError(f"budget {given!r}: give a mapping, or a text of key=number")
        items = _items(given) if isinstance(given, str) else dict(given)
        known = [field.name for field in fields(Budget)]
        for name, value in items.items():
            if name not in known:
                raise SchemeError(f"budget: unknown key {name!r}; known are {', '.join(known)}")
            items[name] = _number(name, value)
        if not items:
            raise SchemeError(f"budget: is empty; give one or more of {', '.join(known)}")
        return Budget(**items)

    def __str__(self) -> str:
        """`size_ratio=0.25,max_drop=0.01`."""
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ",".join(f"{name}={value:g}" for name, value in given if value is not None)

    @property
    def limits_cost(self) -> bool:
        """Whether something but the drop is limited: then the drop is to be least."""
        return bool(self.said_costs)

    @property
    def said_costs(self) -> str:
        """`size_ratio=0.25 and latency_ratio=0.8`: all limits but that of the drop."""
        limits = ((name, getattr(self, name)) for name in _COSTS)
        return " and ".join(f"{name}={limit:g}" for name, limit in limits if limit is not None)

    @property
    def wants_size(self) -> bool:
        """Whether options must be smaller than dense: always, but for latency alone."""
        size = self.size_ratio is not None or self.effective_bits is not None
        return size or self.latency_ratio is None

    @property
    def wants_latency(self) -> bool:
        """Whether options must not be slower than dense: always, but for size alone."""
        return self.latency_ratio is not None or not self.limits_cost

    def notes(self, named: float = 0.0) -> list[str]:
        """What the drop is of without a validation function, if it is limited.

        Args:
            named: distortion by the sites whose schemes were named, which is allowed beside it.
        """
        if self.max_drop is None:
            return []
        if named > 0:
            return [
                f"max_drop={self.max_drop:g} bounds what auto adds to the distortion of the "
                f"outputs, {named:.3g}, that the schemes named for other sites make"
            ]
        return [
            f"max_drop={self.max_drop:g} bounds the distortion of the outputs, which stood in for "
            "a metric: no validation function was given"
        ]


def up_to(most: float) -> float:
    """The greatest sum that keeps a limit."""
    return most + TOLERANCE * abs(most)


def rounded_up(value: float) -> str:
    """The number of four digits that is not below a value: as a limit it lets the value through."""
    up = Context(prec=4, rounding=ROUND_CEILING).create_decimal(f"{value:.15g}")
    return f"{float(up):g}"


def _items(text: str) -> dict[str, float]:
    items: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise SchemeError(f"budget {text!r}: {part!r} is not of the form key=number")
        if name in items:
            raise SchemeError(f"budget {text!r}: {name!r} is given twice")
        items[name] = value  # type: ignore[assignment]  # `_number` reads it
    return items


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise SchemeError(f"budget: {name} wants a number, not {value!r}") from None
    if not math.isfinite(number) or number < 0 or (number == 0 and name != "max_drop"):
        least = "of 0 or more" if name == "max_drop" else "above 0"
        raise SchemeError(f"budget: {name} is a number {least}, not {number:g}")
    return number
