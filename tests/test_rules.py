from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graphs import graph, normal
from undense.passes.errors import SchemeError
from undense.passes.rules import choose_schemes, matches, read_rules
from undense.passes.sites import Site, find_sites
from undense.passes.structures.int_codes import IntCodes
from undense.passes.structures.low_rank import LowRank

NAMES = ["embed", "layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down", "head"]


def sites(names: list[str] = NAMES) -> list[Site]:
    nodes = [f"v{i + 1} = MatMul(v{i}, w{i})" for i in range(len(names))]
    text = f"g (float[b,32] v0) => (float[b,32] v{len(names)}) {{ {'  '.join(nodes)} }}"
    weights = {f"w{i}": normal(32, 32, seed=i) for i in range(len(names))}
    model = graph(text, **weights)
    for i, name in enumerate(names):
        model.graph.initializers[f"w{i}"].name = name
    return find_sites(model)[0]


def test_one_scheme_for_all() -> None:
    assert choose_schemes(sites(), "low_rank") == dict.fromkeys(NAMES, LowRank())


def test_first_match_wins_and_the_rest_is_default() -> None:
    rules = [
        {"match": "layers.0.up", "scheme": "dense"},
        {"match": "*.up", "scheme": "low_rank{rank=4}"},
        {"match": r"re:layers\.\d\.down", "scheme": "int_codes"},
    ]
    chosen = choose_schemes(sites(), rules)
    assert chosen == {
        "embed": "dense",
        "layers.0.up": "dense",
        "layers.0.down": IntCodes(),
        "layers.1.up": LowRank(rank=4),
        "layers.1.down": IntCodes(),
        "head": "dense",
    }
    assert choose_schemes(sites(), rules, default="auto")["head"] == "auto"


def test_ignored_scope_comes_first() -> None:
    chosen = choose_schemes(sites(), [{"match": "*", "scheme": "auto"}], ["head", "re:.*embed.*"])
    assert [name for name, scheme in chosen.items() if scheme == "dense"] == ["embed", "head"]


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("head", "head", True),
        ("head", "head.T", False),
        ("*head", "lm_head", True),
        ("layers.?.up", "layers.1.up", True),
        ("layers.?.up", "layers.10.up", False),
        ("HEAD", "head", False),
        ("re:head", "lm_head", False),
        ("re:.*head", "lm_head", True),
        ("re:a|b", "ab", False),
    ],
)
def test_patterns_match_whole_names(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("rules", "ignored", "message"),
    [
        (
            [{"match": "layer.*", "scheme": "auto"}],
            [],
            r"^rule 'layer\.\*' matches no site; the sites are embed, layers\.0\.up, .* and 1 more",
        ),
        ("auto", ["lm_head"], r"^ignored pattern 'lm_head' matches no site"),
        ([{"match": "*", "skeme": "auto"}], [], r"^rule 1: .* is not of the form"),
        ([{"match": "*"}], [], r"^rule 1: .* is not of the form"),
        (["auto"], [], r"^rule 1: 'auto' is not of the form"),
        ([{"match": 3, "scheme": "auto"}], [], r"^rule 1: match and scheme are texts, not 3"),
        ([{"match": "*", "scheme": "lowrank"}], [], r"^rule 1 for '\*': .* unknown name"),
        ([{"match": "re:(", "scheme": "auto"}], [], r"^pattern 're:\(' is no regular expression"),
        ("auto", ["re:["], r"^pattern 're:\[' is no regular expression"),
        ("lowrank", [], r"unknown name 'lowrank'"),
    ],
)
def test_refused(rules: Any, ignored: list[str], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        choose_schemes(sites(), rules, ignored)


def test_model_without_sites() -> None:
    assert choose_schemes([], "auto") == {}
    with pytest.raises(SchemeError, match="the sites are none"):
        choose_schemes([], "auto", ["*"])


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(
        '- {match: "*.up", scheme: "low_rank{rank=4}"}\n- {match: head, scheme: dense}\n'
    )
    rules = read_rules(file)
    assert rules == [
        {"match": "*.up", "scheme": "low_rank{rank=4}"},
        {"match": "head", "scheme": "dense"},
    ]
    assert choose_schemes(sites(), rules)["layers.1.up"] == LowRank(rank=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"rules\.yaml: cannot be read as YAML: .*line 1"),
        ("match: x", "holds no list of rules"),
        ("", "holds no list of rules"),
        ("- {match: x, scheme: 3}", r"rules\.yaml, rule 1: match and scheme are texts"),
        ("- {match: x, scheme: auto}\n- {match: y, scheme: z}", r"rules\.yaml, rule 2 for 'y'"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(SchemeError, match=r"(?s)" + message):
        read_rules(file)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match=r"none\.yaml: cannot be read as YAML"):
        read_rules(tmp_path / "none.yaml")
