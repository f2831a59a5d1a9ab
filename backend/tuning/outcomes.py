"""What is said of the outcomes of searches, as JSON objects."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..kernels.targets import Workload
from .record import FunctionRecord, Record
from .search import Found


def kernel_row(record: Record, found: Found) -> dict[str, Any]:
    """One kernel at one number of rows."""
    return {
        **named(record.key[:3]),
        "rows": record.rows,
        "fields": dict(record.fields),
        **_compared(found),
    }


def function_row(record: FunctionRecord, found: Found) -> dict[str, Any]:
    """One function that no rule fits."""
    return {"name": record.name, "searched": record.trace is not None, **_compared(found)}


def _compared(found: Found) -> dict[str, Any]:
    comparison = asdict(found.comparison)
    ratio = comparison.pop("ratio")
    return {"tried": found.tried, "wrong": found.wrong, **comparison, "speedup": 1 / ratio}


def named(workload: Workload) -> dict[str, Any]:
    """A kernel."""
    return dict(zip(("kind", "out_features", "in_features"), workload, strict=True))
