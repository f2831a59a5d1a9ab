"""`trit_planes{planes=2,group=128}` <-> `TritPlanes(planes=2, group=128)`.

`+residual{rank=16}` behind codes makes them the first part of a `Residual`.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Any, Literal

from .errors import SchemeError
from .structures import structures
from .structures.base import Structure
from .structures.residual import Residual

Scheme = Structure | Literal["dense", "auto"]

_TERM = r"\s*(\w+)\s*(?:\{([^{}]*)\})?\s*"
_TEXT = re.compile(rf"{_TERM}(?:\+{_TERM})?")


def parse_scheme(text: str) -> Scheme:
    """The structure that a scheme text names, or the words `dense` and `auto` themselves.

    Raises:
        SchemeError: an unknown name, field or value; the message lists the known ones.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise SchemeError(
            f"scheme {text!r} is not of the form name{{field=value,...}}, nor two of it with a +"
        )
    kind, fields, second, second_fields = match.groups()
    if kind in ("dense", "auto"):
        if fields or second:
            raise SchemeError(f"scheme {text!r}: {kind} takes no fields and no residual")
        return typing.cast(Scheme, kind)
    if kind == Residual.kind:
        raise SchemeError(
            f"scheme {text!r}: a residual stands behind codes: int_codes{{bits=4}}+{text.strip()}"
        )
    known = structures()
    if kind not in known:
        names = ", ".join(["auto", "dense", *sorted(known.keys() - {Residual.kind})])
        raise SchemeError(f"scheme {text!r}: unknown name {kind!r}; known are {names}")
    first = _build(known[kind], fields, text)
    if second is None:
        return first
    if second != Residual.kind:
        raise SchemeError(f"scheme {text!r}: behind a + stands {Residual.kind}, not {second!r}")
    return _build(Residual, second_fields, text, codes=first)


def _build(cls: type[Structure], fields: str | None, text: str, **given: Structure) -> Structure:
    """The structure of the fields of a text, besides those that are `given`."""
    types_of = typing.get_type_hints(cls)
    every = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in every if field.name not in given]
    known = {name.rstrip("_"): name for name in names}
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in (fields or "").split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise SchemeError(f"scheme {text!r}: {item!r} is not of the form field=value")
        if name not in known:
            raise SchemeError(
                f"scheme {text!r}: unknown field {name!r}; known are {', '.join(known)}"
            )
        if known[name] in values:
            raise SchemeError(f"scheme {text!r}: field {name!r} is given twice")
        values[known[name]] = _value(value, types_of[known[name]], f"scheme {text!r}: {name}")
    try:
        return cls(**given, **values)
    except SchemeError as error:
        raise SchemeError(f"scheme {text!r}: {error}") from None


def _value(text: str, wanted: Any, where: str) -> Any:
    origin, options = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        for option in options:
            if text == str(option).lower():
                return option
        raise SchemeError(f"{where} is one of {', '.join(map(str, options))}, not {text!r}")
    if origin in (typing.Union, types.UnionType):
        (wanted,) = (option for option in options if option is not type(None))
        return _value(text, wanted, where)
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise SchemeError(f"{where} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return wanted(text)
    except ValueError:
        raise SchemeError(f"{where} wants {wanted.__name__}, not {text!r}") from None
