"""What the documents say against what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from undense.backend.relax_build.operators import operators

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path):
    targets = re.findall(r"\]\(([^)#]+)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_operators_of_tvm_are_listed():
    rows = re.findall(r"^\| \w+ \| ([\w, ]+) \|$", (ROOT / "docs/operators.md").read_text(), re.M)
    listed = [name for row in rows if row != "operators" for name in row.split(", ")]
    assert sorted(listed) == sorted(operators())
