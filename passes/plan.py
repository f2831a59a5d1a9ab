"""`Plan`: which site gets which scheme; a JSON document a person can read, edit and replay."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .errors import PlanError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Choice:
    """The scheme of one site: a resolved scheme text, or `dense`, and why."""

    name: str
    in_features: int
    out_features: int
    scheme: str
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What `ReplaceDense` carries out, and what it was made from.

    Replaying a plan gives the same bytes if model, calibration data, seed and versions agree;
    `check_replay` names the first that does not.

    Attributes:
        sites: one choice a site.
        calibration: sha256 of the calibration samples, or None for a data-free plan.
        seed: of every fit.
        versions: of the packages that decide the bytes: undense, numpy, torch, onnxruntime.
    """

    sites: tuple[Choice, ...]
    calibration: str | None = None
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Indented JSON with one site a line group, in a fixed order."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str, origin: str | Path = "plan") -> Plan:
        """The plan of a JSON text; `origin` is named in errors."""
        raise PlanError(f"{origin}: not written yet {len(text)}")
