"""Fuses element-wise operators into their producers: one PrimFunc a group, in a fixed form."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax import transform
from tvm.relax.expr_functor import PyExprMutator, mutator

from ..kernels.lowering import is_scheduled

_OPAQUE = 8
"""Relax's operator pattern for what is not to be fused with anything."""

_CALL_TIR = tvm.ir.Op.get("relax.call_tir")


def fuse(module: Any) -> Any:
    """The module with every operator in a PrimFunc, and chains of them in one."""
    # A reshape stays an operator: the virtual machine makes it a view, which a loop would copy.
    module = transform.LegalizeOps({"relax.reshape": lambda _builder, call: call})(module)
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and is_scheduled(function):
            # Fusing would tear the loops that a kernel has fixed.
            module.update_func(variable, function.with_attr("op_pattern", _OPAQUE))
    passes = (
        transform.DeadCodeElimination(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    )
    return _with_sorted_symbols(tvm.transform.Sequential(passes)(module))


def _with_sorted_symbols(module: Any) -> Any:
    """The module with the symbols that a PrimFunc takes in order of their names.

    Fusion orders them by address, so that the same model would give other code each time.
    """
    sorter = _SymbolSorter(module)
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            sorter.sort(variable, function)
    if sorter.orders:
        for variable, function in module.functions.items():
            if isinstance(function, relax.Function):
                sorter.builder_.update_func(variable, sorter.visit_expr(function))
    return sorter.builder_.get()


@mutator
class _SymbolSorter(PyExprMutator):  # type: ignore[misc]
    """Replaces PrimFuncs by ones whose symbols are sorted, and their calls.

    Attributes:
        orders: for each replaced function, which old argument each new one is.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.orders: dict[Any, list[int]] = {}

    def sort(self, variable: Any, function: Any) -> None:
        """Replaces a function that takes its symbols in another order."""
        parameters = list(function.params)
        places = [i for i, symbol in enumerate(parameters) if tvm.ir.is_prim_var(symbol)]
        by_name = sorted(places, key=lambda place: str(parameters[place].name))
        if by_name == places:
            return
        order = list(range(len(parameters)))
        for place, source in zip(places, by_name, strict=True):
            order[place] = source
        replaced = tirx.PrimFunc(
            [parameters[source] for source in order],
            function.body,
            function.ret_type,
            function.attrs,
        )
        self.builder_.update_func(variable, replaced)
        self.orders[variable] = order

    def visit_call_(self, call: Any) -> Any:
        """Gives a replaced function its symbols in the new order."""
        order = self.orders.get(call.args[0]) if call.op == _CALL_TIR else None
        if order is None:
            return super().visit_call_(call)
        given = list(call.args[1].fields)
        fields = [given[source] for source in order[: len(given)]]
        return relax.Call(call.op, [call.args[0], relax.Tuple(fields)], call.attrs, call.ty_args)
