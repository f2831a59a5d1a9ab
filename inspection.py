"""What there is in a model or an artifact: its linears, and its graph as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def inspect(source: str | Path) -> dict[str, Any]:
    """The report of an artifact, or the sites and refusals of a model that was not compiled."""
    from .runtime.artifact import MANIFEST

    if (Path(source) / MANIFEST).exists():
        from .runtime.artifact import open_artifact
        from .runtime.report import read_report

        return read_report(open_artifact(source))
    from .backend.stored import bytes_by_name, site_bytes, weight_bytes
    from .frontend.load import load as capture
    from .passes.duplicates import MergeDuplicateWeights
    from .passes.report import refusal_rows, site_rows
    from .passes.sites import find_sites

    model = capture(source)
    MergeDuplicateWeights()(model)
    sites, refusals = find_sites(model)
    size, by_name = weight_bytes(model), bytes_by_name(model)
    return {
        "sites": site_rows(sites, {}, {}, {site.name: site_bytes(site, by_name) for site in sites}),
        "refusals": refusal_rows(refusals),
        "bytes": {"before": size, "after": size},
    }


def graph_text(source: str | Path) -> str:
    """The graph of a model, or of an artifact's `model.onnx`, as text without weights."""
    from .frontend.load import load as capture
    from .passes.text import show
    from .runtime.artifact import MANIFEST, MODEL, open_artifact

    if (Path(source) / MANIFEST).exists():
        source = open_artifact(source).file(MODEL)
    return show(capture(source))
