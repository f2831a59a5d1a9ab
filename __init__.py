"""undense replaces the dense layers of an exported model by structured ones and compiles it.

The facade: `compile` makes a deployable module of a trained model, `plan` tells what it would do,
`load` opens one.
Imports are lazy, so that loading an artifact needs neither torch nor onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["UndenseError", "__version__", "compile", "load", "plan"]

if TYPE_CHECKING:
    from .compiler import compile, plan
    from .passes.errors import UndenseError
    from .runtime.session import load

_HOMES = {
    "compile": ".compiler",
    "plan": ".compiler",
    "load": ".runtime.session",
    "UndenseError": ".passes.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value
