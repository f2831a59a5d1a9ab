"""`model -> pass -> pass -> model`: named passes in a fixed order, with one hook around each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

Moment = Literal["before", "after"]
Hook = Callable[[str, Moment, ir.Model], None]
"""Called with the name of a pass, the moment and the model: to print, verify or time."""


@dataclass(frozen=True)
class Pipeline:
    """Passes by name, run in order.

    `onnx_ir.passes.Sequential` does the same, but has no hook and wraps the errors of a pass in
    one of its own, which hides the sentence that the user should read.
    """

    passes: tuple[tuple[str, ir.passes.PassBase], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.passes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two passes have the name {repeated[0]!r}")

    def run(self, model: ir.Model, hook: Hook | None = None) -> ir.passes.PassResult:
        """The result of the last pass; `modified` if any pass changed something."""
        modified = False
        for name, run in self.passes:
            if hook is not None:
                hook(name, "before", model)
            result = run(model)
            model, modified = result.model, modified or result.modified
            if hook is not None:
                hook(name, "after", model)
        return ir.passes.PassResult(model, modified)
