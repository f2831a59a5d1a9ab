"""`Functions`: the distinct PrimFuncs of a model, compiled to one object file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...passes.errors import LoweringError

if TYPE_CHECKING:
    from ..kernels.tir import PrimFunc

PROVIDED = frozenset(
    [
        "__TVMBackendAllocWorkspace",
        "__TVMBackendFreeWorkspace",
        "__TVMBackendParallelLaunch",
        "TVMFFIErrorSetRaisedFromCStr",
        "TVMFFIErrorSetRaisedFromCStrParts",
    ]
)
"""What `native/tvm_backend.cc` gives to generated code."""


class Functions:
    """PrimFuncs by name; structurally equal ones are one function."""

    def __init__(self) -> None:
        self._known: dict[int, list[tuple[PrimFunc, str]]] = {}
        self._named: dict[str, PrimFunc] = {}

    def name(self, function: PrimFunc) -> str:
        """The name of a function in the object file."""
        import tvm_ffi

        alike = self._known.setdefault(tvm_ffi.structural_hash(function), [])
        for known, name in alike:
            if tvm_ffi.structural_equal(known, function):
                return name
        name = f"undense_{len(self._named)}"
        self._named[name] = function.with_attr("global_symbol", name)
        alike.append((function, name))
        return name

    @property
    def names(self) -> list[str]:
        """All names, in order."""
        return list(self._named)

    def write(self, path: Path, machine: Any) -> None:
        """Compiles all functions for a TVM target to the object file `path`.

        Raises:
            LoweringError: the code wants something of TVM's runtime that ONNX Runtime cannot give.
        """
        import tvm

        from ..kernels.lowering import lowering_context

        with machine, lowering_context():
            module = tvm.compile(tvm.IRModule(self._named), target=machine).mod
        wanted = set(re.findall(r"@((?:__)?TVM\w+)", module.inspect_source("ll")))
        if missing := sorted(wanted - PROVIDED):
            raise LoweringError(
                f"kernels tvm: the generated code needs {', '.join(missing)} of TVM's runtime, "
                "which ONNX Runtime has no match for; compile without kernels, or for target llvm"
            )
        module.write_to_file(str(path), "o")
