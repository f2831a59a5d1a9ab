"""CUDA graphs: what is launched again and again with the same lengths is launched at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from ...passes.errors import TargetError

_SYMBOLS = "relax.rewrite_cuda_graph.capture_symbolic_vars"
_UPPER = "tir_var_upper_bound"


def marked(
    module: Any,
    bounds: dict[str, tuple[int, int | None]],
    symbols: Sequence[tuple[str, int | None]] | None,
) -> Any:
    """The module, told which symbols its graphs may depend on, and how large all can become.

    What depends on other symbols is launched by itself, between graphs. Memory that a graph uses
    stays where it is, so it is planned for the greatest lengths.

    Args:
        module: with the function `main`.
        bounds: lowest and highest length of symbols; what a symbol is planned for is put in.
        symbols: each with its greatest length if that is to be less; None is all with a bound.

    Raises:
        TargetError: a symbol that the model has not, or one without an upper bound.
    """
    main = module["main"]
    known = {str(variable.name) for variable in _variables(main)}
    for name, most in symbols or ():
        if name in known and most is not None:
            low, high = bounds.get(name, (0, None))
            bounds[name] = (low, most if high is None else min(most, high))
    upper = {name: high for name, (_, high) in bounds.items() if high is not None and name in known}
    chosen = sorted(upper) if symbols is None else [name for name, _ in symbols]
    for name in chosen:
        if name not in known:
            raise TargetError(
                f"CUDA graphs: the model has no dimension {name!r}; dynamic are "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        if name not in upper:
            raise TargetError(
                f"CUDA graphs: dimension {name!r} has no upper bound for memory to be planned "
                f"by; give one, as in {name}=8, or export with torch.export.Dim({name!r}, max=...)"
            )
    if known and not chosen:
        raise TargetError(
            "CUDA graphs: no dynamic dimension has an upper bound for memory to be planned by; "
            "export the model with torch.export.Dim(..., max=...)"
        )
    main = main.with_attr(_SYMBOLS, chosen).with_attr(_UPPER, upper)
    module.update_func(module.get_global_var("main"), main)
    return module


def _variables(main: Any) -> set[Any]:
    shapes = (parameter.ty.shape for parameter in main.params)
    dims = (dim for shape in shapes for dim in getattr(shape, "values", ()))
    return {variable for dim in dims for variable in tirx.analysis.undefined_vars(dim)}
