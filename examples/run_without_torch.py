"""Loads an artifact and runs it with numpy alone: neither torch nor onnx is imported.

python examples/run_without_torch.py ARTIFACT
"""

from __future__ import annotations

import sys

import numpy as np
import undense


def main(path: str) -> None:
    module = undense.load(path)
    inputs = {}
    for info in module.inputs:
        # Symbolic dimensions are named: any length within their bounds will do.
        shape = [size if isinstance(size, int) else 2 for size in info.shape]
        inputs[info.name] = np.ones(shape, info.dtype)
    for name, output in module.run(inputs).items():
        print(f"{name}: {output.dtype} {list(output.shape)}, mean {output.mean():.4f}")
    loaded = {"torch", "onnx"} & set(sys.modules)
    print(f"engine {module.engine}; imported of torch and onnx: {', '.join(loaded) or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1])
