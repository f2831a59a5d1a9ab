"""A plan is a JSON file: write it, change a line by hand, and carry out the changed one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
import undense
from torch import nn


def main() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 64)]
    model = nn.Sequential(*layers).eval()
    samples = [torch.randn(64, 128) for _ in range(16)]

    with tempfile.TemporaryDirectory() as folder:
        first = undense.compile(
            model, (samples[0],), target="ort-cpu", scheme="trit_planes{planes=3}",
            calibration_dataset=samples, output=Path(folder) / "first",
        )  # fmt: skip
        plan_file = first.path / "plan.json"
        plan = json.loads(plan_file.read_text())
        for site in plan["sites"]:
            print(f"{site['name']}: {site['scheme']}")

        # By hand one would open the file in an editor; a program changes it like this.
        for site in plan["sites"]:
            if site["name"] == "4.weight":
                site |= {"scheme": "dense", "reason": "the last layer stays exact"}
        edited = Path(folder) / "edited.json"
        edited.write_text(json.dumps(plan, indent=2))

        second = undense.compile(
            model, (samples[0],), target="ort-cpu", calibration_dataset=samples,
            plan=edited, output=Path(folder) / "second",
        )  # fmt: skip
        for name, module in (("first", first), ("edited", second)):
            error = (module(samples[0]) - model(samples[0])).norm() / model(samples[0]).norm()
            print(f"{name}: {module.report['bytes']['after']:,} bytes, output error {error:.2%}")


if __name__ == "__main__":
    main()
