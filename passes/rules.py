"""`[{match: "*.mlp.*", scheme: low_rank}]`: which scheme each site is to get, by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .errors import SchemeError, cause_of
from .scheme import Scheme, parse_scheme
from .sites import Site

_SHOWN_NAMES = 5


@dataclass(frozen=True)
class Rule:
    """Sites whose name matches get a scheme.

    Attributes:
        match: a glob (`*`, `?`, `[...]`), or `re:` and a regular expression for the whole name.
        scheme: what they get.
    """

    match: str
    scheme: Scheme

    @staticmethod
    def parse(item: object, origin: str = "rule") -> Rule:
        """The rule of `{"match": pattern, "scheme": text}`.

        Raises:
            SchemeError: a field that is unknown, missing or no text, a bad pattern or scheme.
        """
        if not isinstance(item, Mapping) or set(item) != {"match", "scheme"}:
            raise SchemeError(f"{origin}: {item!r} is not of the form {{match: ..., scheme: ...}}")
        match, scheme = item["match"], item["scheme"]
        if not isinstance(match, str) or not isinstance(scheme, str):
            raise SchemeError(f"{origin}: match and scheme are texts, not {match!r} and {scheme!r}")
        matches(match, "")
        try:
            return Rule(match, parse_scheme(scheme))
        except SchemeError as error:
            raise SchemeError(f"{origin} for {match!r}: {error}") from None


def read_rules(path: str | Path) -> list[dict[str, str]]:
    """The rules of a YAML file: a list of `{match, scheme}`.

    Raises:
        SchemeError: the file cannot be read, is no YAML, or holds something else.
    """
    import yaml

    try:
        items = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SchemeError(f"{path}: cannot be read as YAML: {cause_of(error)}") from None
    if not isinstance(items, list) or not items:
        raise SchemeError(
            f"{path}: holds no list of rules such as '- {{match: \"*\", scheme: auto}}'"
        )
    for number, item in enumerate(items, 1):
        Rule.parse(item, f"{path}, rule {number}")
    return items


def matches(pattern: str, name: str) -> bool:
    """Whether a glob, or a regular expression behind `re:`, matches all of `name`.

    Raises:
        SchemeError: the regular expression is not valid.
    """
    if not pattern.startswith("re:"):
        return fnmatchcase(name, pattern)
    try:
        return re.fullmatch(pattern.removeprefix("re:"), name) is not None
    except re.error as error:
        raise SchemeError(f"pattern {pattern!r} is no regular expression: {error}") from None


def choose_schemes(
    sites: Sequence[Site],
    scheme: str | Sequence[Mapping[str, str]],
    ignored_scope: Sequence[str] = (),
    *,
    default: Scheme = "dense",
) -> dict[str, Scheme]:
    """The scheme of every site by name.

    Args:
        sites: of the model.
        scheme: one scheme text for all sites, or rules of which the first match wins.
        ignored_scope: patterns of names of sites that stay dense, whatever the rules say.
        default: of sites that no rule matches.

    Raises:
        SchemeError: a rule or an entry of `ignored_scope` that is not understood, or that no
            site matches.
    """
    if isinstance(scheme, str):
        rules, default = [], parse_scheme(scheme)
    else:
        rules = [Rule.parse(item, f"rule {number}") for number, item in enumerate(scheme, 1)]
    names = [site.name for site in sites]
    for what, patterns in (
        ("ignored pattern", ignored_scope),
        ("rule", [rule.match for rule in rules]),
    ):
        for pattern in patterns:
            _check_used(what, pattern, names)
    return {name: _choose(name, rules, ignored_scope, default) for name in names}


def _choose(
    name: str, rules: Sequence[Rule], ignored_scope: Sequence[str], default: Scheme
) -> Scheme:
    if any(matches(pattern, name) for pattern in ignored_scope):
        return "dense"
    return next((rule.scheme for rule in rules if matches(rule.match, name)), default)


def _check_used(what: str, pattern: str, names: Sequence[str]) -> None:
    if any(matches(pattern, name) for name in names):
        return
    shown = ", ".join(names[:_SHOWN_NAMES]) or "none"
    rest = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    raise SchemeError(f"{what} {pattern!r} matches no site; the sites are {shown}{rest}")
