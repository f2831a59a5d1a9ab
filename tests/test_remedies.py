"""What errors advise is right for who calls from Python and for who types a command."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import undense

ROOT = Path(__file__).parent.parent
LIBRARY = [
    *(path for folder in ("passes", "frontend", "backend", "runtime")
      for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "compiler.py",
]  # fmt: skip
OF_COMMANDS_ALONE = ("backend/tuning", "runtime/report.py", "runtime/plan_report.py")
"""What only `undense tune` calls, and tables."""
KEYWORDS = {
    name
    for function in (undense.compile, undense.load)
    for name in inspect.signature(function).parameters
}
OF_PYTHON = re.compile(rf"\b({'|'.join(sorted(KEYWORDS))})=")
NAME_OF_PYTHON = re.compile(rf"\b({'|'.join(sorted(n for n in KEYWORDS if '_' in n))})\b")
OF_COMMANDS = re.compile(r"(^|\s)--[a-z]")


def _messages(path: Path) -> Iterator[str]:
    """Every sentence in a file that is no docstring; `{}` stands for what is put in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    within = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if id(node) in docstrings | within:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        else:
            continue
        if text.count(" ") > 2:
            yield text


def _wrong(path: Path) -> Iterator[str]:
    place = str(path.relative_to(ROOT))
    for message in _messages(path):
        for_commands = place.startswith(OF_COMMANDS_ALONE)
        # What torch is given to export cannot be said on the command line.
        for_python = place == "frontend/load.py"
        if (
            OF_PYTHON.search(message)
            or (OF_COMMANDS.search(message) and not for_commands)
            or (NAME_OF_PYTHON.search(message) and not for_python)
        ):
            yield f"{place}: {message}"


def test_remedies_are_right_for_both() -> None:
    assert [message for path in LIBRARY for message in _wrong(path)] == []
