"""`Plan`: which site gets which scheme; a JSON document a person can read, edit and replay."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import FitError, PlanError, SchemeError, cause_of
from .scheme import Scheme, parse_scheme
from .structures.base import Structure

if TYPE_CHECKING:
    from .sites import Site

FORMAT_VERSION = 1

_ABOUT = ": "
"""Between a scheme and the reason for it."""

_DECIDING_PACKAGES = ("undense", "numpy", "torch", "onnxruntime")


@dataclass(frozen=True)
class Choice:
    """The scheme of one site: a resolved scheme text, or `dense`, and why.

    In JSON the reason has the scheme that it is about in front. Where a site has another one by
    then, the reason is no longer true, and is replaced when the plan is read; a reason without a
    scheme in front, as people write them, is kept.
    """

    name: str
    in_features: int
    out_features: int
    scheme: str
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What `ReplaceDense` carries out, and what it was made from.

    Replaying a plan gives the same bytes if model, calibration data, seed, options and versions
    agree; `check_replay` names the first that does not. Of the model it compares the names and
    shapes of the sites, not the weights: a plan can be carried out on other weights.

    Attributes:
        sites: one choice a site.
        calibration: sha256 of the calibration samples, or None for a data-free plan.
        seed: of every fit.
        options: target, dtype and lossless of the compile, as text. What is not there is not
            compared when the plan is carried out.
        versions: of the packages that decide the bytes: undense, numpy, torch, onnxruntime.
    """

    sites: tuple[Choice, ...]
    calibration: str | None = None
    seed: int = 0
    options: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Indented JSON with one site a line group, in a fixed order."""
        sites = [
            replace(choice, reason=f"{choice.scheme}{_ABOUT}{choice.reason}" * bool(choice.reason))
            for choice in self.sites
        ]
        return json.dumps(asdict(replace(self, sites=tuple(sites))), indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes `to_json` to a file, whole or not at all."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.write_text(self.to_json(), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def from_json(text: str, origin: str | Path = "plan") -> Plan:
        """The plan of a JSON text, with every scheme resolved for the shape of its site.

        Raises:
            PlanError: no JSON, another format version, an unknown, missing or doubled field, a
                value of another type, or a scheme that is not understood; names `origin`.
            FitError: a scheme that the shape of its site does not admit.
        """
        return _Reader(text, str(origin)).plan()

    def check_replay(
        self,
        sites: Sequence[Site],
        calibration: str | None,
        seed: int,
        options: Mapping[str, str],
        current: Mapping[str, str] | None = None,
    ) -> None:
        """Raises unless this plan can be replayed to the same bytes.

        Args:
            sites: of the model at hand.
            calibration: sha256 of the calibration samples at hand, or None.
            seed: of the fits at hand.
            options: of the compile at hand.
            current: versions of the packages at hand; those that are installed if not given.

        Raises:
            PlanError: names the first thing that differs, what the plan says and what is there.
        """
        by_name = {site.name: site for site in sites}
        for choice in self.sites:
            site_of(choice, by_name)
        planned = {choice.name for choice in self.sites}
        for name in by_name:
            if name not in planned:
                raise PlanError(
                    f"{name}: the plan does not say what becomes of this site; add it, with scheme "
                    "dense to leave it as it is"
                )
        if self.calibration != calibration:
            raise _differs("calibration data", _short(self.calibration), _short(calibration))
        if self.seed != seed:
            raise _differs("seeds", self.seed, seed)
        for name, planned_for in self.options.items():
            if options.get(name) != planned_for:
                remedy = f", or take {name} out of the plan's options to carry it out all the same"
                raise _differs(
                    f"values of option {name}", planned_for, options.get(name, "none"), remedy
                )
        found = versions() if current is None else current
        for name, version in self.versions.items():
            if found.get(name) != version:
                raise _differs(f"versions of {name}", version, found.get(name, "none"))


def read_plan(path: str | Path) -> Plan:
    """The plan of a JSON file.

    Raises:
        PlanError: the file cannot be read, or as `Plan.from_json`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read as a plan: {cause_of(error)}") from None
    return Plan.from_json(text, path)


def versions() -> dict[str, str]:
    """The versions of the packages that decide the bytes of a fit, where they are installed."""
    found: dict[str, str] = {}
    for package in _DECIDING_PACKAGES:
        for distribution in (package, f"{package}-gpu"):
            try:
                found.setdefault(package, metadata.version(distribution))
            except metadata.PackageNotFoundError:
                continue
    return found


def site_of(choice: Choice, sites: Mapping[str, Site]) -> Site:
    """The site that a choice is about.

    Raises:
        PlanError: there is none of that name, it has another shape, or it is an embedding and the
            scheme cannot gather rows.
    """
    site = sites.get(choice.name)
    if site is None:
        raise PlanError(f"{choice.name}: the model has no such site; `inspect` lists its sites")
    planned, found = (f"{shape.out_features}×{shape.in_features}" for shape in (choice, site))
    if planned != found:
        raise PlanError(
            f"{choice.name}: the plan was made for a weight of {planned} and the model has {found}"
            "; make the plan again"
        )
    scheme = parse_scheme(choice.scheme)
    if site.gathered and not isinstance(scheme, str) and not scheme.gathers:
        raise PlanError(
            f"{choice.name}: {choice.scheme} cannot gather rows, and an embedding reads this "
            "weight; choose dense or int_codes"
        )
    return site


def _differs(what: str, planned: object, found: object, remedy: str = "") -> PlanError:
    return PlanError(
        f"{what} differ: the plan was made with {planned} and this run has {found}; give it the "
        f"same, {'' if remedy else 'or '}make the plan again{remedy}"
    )


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:8]}…"


class _Reader:
    """Checks a JSON document field by field."""

    def __init__(self, text: str, origin: str) -> None:
        self.text, self.origin = text, origin

    def plan(self) -> Plan:
        """The whole document."""
        try:
            document = json.loads(self.text, object_pairs_hook=self._without_doubles)
        except json.JSONDecodeError as error:
            raise PlanError(
                f"{self.origin}, line {error.lineno}: not valid JSON: {error.msg}"
            ) from None
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(document, dict) and version != FORMAT_VERSION:
            self._fail("format_version", f"is {version}, and this undense reads {FORMAT_VERSION}")
        values = self._object(document, Plan, "")
        choices = [
            self._choice(item, f"sites[{index}]") for index, item in enumerate(values["sites"])
        ]
        names = [choice.name for choice in choices]
        for index, name in enumerate(names):
            if name in names[:index]:
                self._fail(f"sites[{index}].name", f"{name!r} is there twice")
        for mapping in ("options", "versions"):
            for name, found in values.get(mapping, {}).items():
                self._check(f"{mapping}.{name}", found, str)
        return Plan(**{**values, "sites": tuple(choices)})

    def _choice(self, item: object, where: str) -> Choice:
        choice = Choice(**self._object(item, Choice, f"{where}."))
        try:
            scheme = parse_scheme(choice.scheme)
        except SchemeError as error:
            self._fail(f"{where}.scheme", str(error), _entry("scheme", choice.scheme))
        if scheme == "auto":
            entry = _entry("scheme", "auto")
            self._fail(f"{where}.scheme", "auto is not decided; name a scheme", entry)
        scheme = _resolved(choice, scheme)
        return replace(choice, scheme=str(scheme), reason=_reason(choice, scheme))

    def _object(self, item: object, cls: type, where: str) -> dict[str, Any]:
        """The fields of a JSON object, which are those of the dataclass `cls`."""
        if not isinstance(item, dict):
            self._fail(where.rstrip(".") or "the document", "is not an object")
        known = {field.name: field for field in fields(cls)}
        for name, value in item.items():
            if name not in known:
                self._fail(where + name, f"is not known; known are {', '.join(known)}", _key(name))
            self._check(where + name, value, *_TYPES[name])
        for name, field_ in known.items():
            required = field_.default is MISSING and field_.default_factory is MISSING
            if required and name not in item:
                self._fail(where + name, "is missing")
        return item

    def _check(self, where: str, value: object, *types: type) -> None:
        if isinstance(value, types) and not isinstance(value, bool):
            return
        names = " or ".join(_NAMES[type_] for type_ in types)
        entry = _entry(where.rpartition(".")[2], value)
        self._fail(where, f"wants {names}, not {json.dumps(value)[:40]}", entry)

    def _fail(self, where: str, problem: str, pattern: str = "") -> NoReturn:
        """Names the field and the line where `pattern` stands in the document, if it does."""
        found = re.search(pattern, self.text) if pattern else None
        line = f", line {self.text.count(chr(10), 0, found.start()) + 1}" if found else ""
        raise PlanError(f"{self.origin}{line}: {where}: {problem}")

    def _without_doubles(self, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                self._fail(name, "is there twice in one object", _key(name))
            result[name] = value
        return result


def _resolved(choice: Choice, scheme: Scheme) -> Scheme:
    if not isinstance(scheme, Structure):
        return scheme
    return scheme.resolve(choice.out_features, choice.in_features, site=choice.name)


def _reason(choice: Choice, scheme: Scheme) -> str:
    """The reason of a choice in JSON, if it is about this scheme."""
    about, found, reason = choice.reason.partition(_ABOUT)
    try:
        written = parse_scheme(about) if found else "auto"
    except SchemeError:
        return choice.reason
    if written == "auto":  # which no site has in a plan: there is no scheme in front
        return choice.reason
    with suppress(FitError):
        written = _resolved(choice, written)
    return reason if written == scheme else f"as the plan says, which was made with {about}"


def _key(name: str) -> str:
    return rf"{re.escape(json.dumps(name))}\s*:"


def _entry(name: str, value: object) -> str:
    return rf"{_key(name)}\s*{re.escape(json.dumps(value))}"


_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "in_features": (int,),
    "out_features": (int,),
    "scheme": (str,),
    "reason": (str,),
    "sites": (list,),
    "calibration": (str, type(None)),
    "seed": (int,),
    "options": (dict,),
    "versions": (dict,),
    "format_version": (int,),
}
_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}
_NAMES[type(None)] = "null"
