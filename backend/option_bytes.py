"""`OptionBytes`: what a target stores for a fit, or for the dense weight."""

from __future__ import annotations

import onnx_ir as ir

from ..passes.replace import Fitted
from ..passes.sites import Site
from .target import Target


class OptionBytes:
    """Bytes of a fit: of its tensors for ONNX Runtime, of what the kernel packs for TVM.

    Kernels of TVM for ONNX Runtime store what they pack beside the tensors. Bytes follow from the
    structure and the shape, so that one fit of each is packed and stands for all others.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._packed: dict[tuple[str, int, int, str], int] = {}

    def of(self, fitted: Fitted, shape: tuple[int, int], dtype: ir.DataType) -> int:
        """Of a weight `[out_features, in_features]` of that shape, with activations of a type.

        Raises:
            LoweringError: TVM has no kernel for the structure.
        """
        tensors = sum(tensor.nbytes for tensor in fitted.tensors.values())
        if not self._target.compiles:
            return tensors
        beside = 0 if self._target.engine == "tvm" else tensors
        name = dtype.numpy().name
        key = (str(fitted.structure), *shape, name)
        if key not in self._packed:
            self._packed[key] = self._bytes(fitted, shape, name)
        return beside + self._packed[key]

    def of_dense(self, site: Site, plain: int) -> int:
        """Of a weight that stays as it is: twice its `plain` bytes where cuBLAS reads a copy."""
        multiplied = any(use.form != "gather" for use in site.uses)
        return 2 * plain if multiplied and "cublas" in self._target.libraries else plain

    def _bytes(self, fitted: Fitted, shape: tuple[int, int], dtype: str) -> int:
        from .kernels import kernel_for

        structure = fitted.structure
        with self._target.compiled_for.tvm():
            packed = kernel_for(structure, dtype).pack(
                structure, structure.unpack(fitted.tensors, *shape)
            )
        return sum(array.nbytes for array in packed.values())
