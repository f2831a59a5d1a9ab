"""Makes each shape and each view of memory once in a call, instead of where it is needed.

What the virtual machine does between two kernels takes about a microsecond: more than a small
kernel itself.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

_ALLOC_TENSOR = tvm.ir.Op.get("relax.vm.alloc_tensor")
_KILL = tvm.ir.Op.get("relax.vm.kill_object")
_MAKE_SHAPE, _RESHAPE = "vm.builtin.make_shape", "vm.builtin.reshape"


def share_views(module: Any) -> Any:
    """The module, lowered for the virtual machine, with equal shapes, tensors and reshapes joined.

    Memory is planned by then: two tensors of one shape at one place of a storage are one view of
    it. They keep the storage to the end of the call; few are let go of much before.
    """
    sharer = _Sharer(module)
    for variable, function in module.functions.items():
        if isinstance(function, relax.Function):
            sharer.start()
            sharer.builder_.update_func(variable, sharer.visit_expr(function))
    return sharer.builder_.get()


@mutator
class _Sharer(PyExprMutator):  # type: ignore[misc]
    """Drops what was made before, and the instructions that would let go of it.

    A function of the virtual machine has no branches here: what was made first comes before all
    its uses.
    """

    def start(self) -> None:
        """Forgets what another function made."""
        self.made: dict[Any, Any] = {}
        self.first: dict[Any, Any] = {}
        self.shape: dict[Any, Any] = {}
        self.base: dict[Any, Any] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        """Keeps a binding, or says which earlier one it repeats."""
        value, variable = binding.value, binding.var
        if not isinstance(value, relax.Call):
            super().visit_var_binding_(binding)
            return
        if value.op == _KILL and value.args[0] in self.first:
            return
        name = _packed_name(value)
        if name == _MAKE_SHAPE:
            self._share(binding, (_MAKE_SHAPE, *map(_plain, value.args)))
        elif value.op == _ALLOC_TENSOR:
            storage, offset, shape, dtype, device = value.args
            shape = self.first.get(shape, shape)
            self.shape[variable] = shape
            key = (_ALLOC_TENSOR.name, storage, _plain(offset), shape, str(dtype), _plain(device))
            self._share(binding, key)
        elif name == _RESHAPE:
            tensor, shape = (self.first.get(argument, argument) for argument in value.args)
            base = self.base.get(tensor, tensor)
            self.base[variable] = base
            if base in self.shape and self.shape[base].same_as(shape):
                self._repeat(variable, base)
                return
            self._share(binding, (_RESHAPE, base, shape))
        else:
            super().visit_var_binding_(binding)

    def _share(self, binding: Any, key: Any) -> None:
        if key in self.made:
            self._repeat(binding.var, self.made[key])
            return
        self.made[key] = self.first[binding.var] = binding.var
        super().visit_var_binding_(binding)

    def _repeat(self, variable: Any, earlier: Any) -> None:
        self.first[variable] = earlier
        self.set_var_remap(variable, self.visit_expr(earlier))


def _packed_name(call: Any) -> str | None:
    return str(call.op.global_symbol) if isinstance(call.op, relax.ExternFunc) else None


def _plain(argument: Any) -> Any:
    """An argument as what equal ones have in common."""
    return int(argument) if isinstance(argument, tirx.IntImm) else argument
