"""What the virtual machine does between kernels: each shape and each view of memory once."""

from __future__ import annotations

import re

import numpy as np
import tvm
from relax_models import compile_model, normal, parse
from tvm import relax

LAYERS = 6
BODY = "\n".join(
    f"m{i} = MatMul({'x' if i == 0 else f'r{i - 1}'}, w)  r{i} = Reshape(m{i}, flat)"
    f"  s{i} = Softmax <axis = 0> (r{i})"
    for i in range(LAYERS)
)
WEIGHT = ", ".join(map(str, normal(64)))
GRAPH = f"""g (float[b, 8] x) => (float s{LAYERS - 1}, float r{LAYERS - 1})
<float[8, 8] w = {{{WEIGHT}}}, int64[2] flat = {{-1, 8}}> {{ {BODY} }}"""


def test_shapes_are_made_once() -> None:
    code = compile_model(parse(GRAPH)).executable.as_text()
    shapes = re.findall(r"make_shape.*in: (.*) dst", code)
    assert shapes, code
    assert len(shapes) == len(set(shapes))


def test_outputs_of_a_call_outlive_the_next() -> None:
    module = compile_model(parse(GRAPH))
    main = relax.VirtualMachine(module.executable, tvm.cpu())["main"]
    weights = [tvm.runtime.tensor(array) for array in module.weights.values()]
    feeds = [normal(3, 8), normal(3, 8), normal(5, 8)]
    alone = [[y.numpy() for y in main(tvm.runtime.tensor(x), *weights)] for x in feeds]
    kept = [main(tvm.runtime.tensor(x), *weights) for x in feeds]
    for expected, outputs in zip(alone, kept, strict=True):
        for array, output in zip(expected, outputs, strict=True):
            np.testing.assert_array_equal(output.numpy(), array)
