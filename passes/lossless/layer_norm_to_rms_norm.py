"""`LayerNorm(x) -> RMSNorm(x)` where x is centred, and the writers of x are made so.

With `J = I − 11ᵀ/d`, `LayerNorm(x) = RMSNorm(J x)` with the same ε. If every writer into a residual
stream gives centred vectors, so does their sum. (Jiang et al., arXiv 2305.14858.)
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..constants import static_values
from .centring import centre, centring
from .journal import Journal, counted
from .linears import linears
from .root_mean_square import to_rms_norm
from .stream import LAYER_NORM, Stream, stream_of

_EXACT = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


class LayerNormToRMSNorm(ir.passes.InPlacePass):
    """Turns the LayerNorms of a pre-LayerNorm model into RMSNorms.

    Writers whose constants cannot be edited are centred at run time, as long as that is done less
    often than norms are saved the mean.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        modified, seen = False, set[ir.Node]()
        # From the last norm all sums before it are seen, and every writer.
        for norm in reversed(list(model.graph)):
            if norm.domain or norm.op_type != LAYER_NORM or norm in seen:
                continue
            found = {
                linear.output: linear for linear in linears(model.graph, static_values(model.graph))
            }
            stream = stream_of(norm, found)
            if isinstance(stream, Stream):
                seen.update(stream.norms)
                plan = centring(stream, found)
                reason = _obstacle(stream, len(plan.values))
            else:
                reason = stream
            if isinstance(stream, str) or reason:
                self.journal.refuse(norm.outputs[0].name, f"stays a LayerNorm: {reason}")
                continue
            centre(model.graph, stream, plan)
            for member in stream.norms:
                to_rms_norm(member, model.opset_imports[""])
            modified = True
            self.journal.done.append(
                f"LayerNorm → RMSNorm: {counted(len(stream.norms), 'norm')}; centred "
                f"{counted(len(plan.linears), 'linear')} and "
                f"{counted(len(plan.tables), 'table')} in their weights, "
                f"{counted(len(plan.values), 'value')} at run time"
            )
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _obstacle(stream: Stream, at_run_time: int) -> str:
    x = stream.norms[0].inputs[0]
    if x is None or x.dtype not in _EXACT:
        return "it is of no type that is computed exactly enough: float32 or float64"
    if at_run_time >= len(stream.norms):
        return (
            f"{counted(at_run_time, 'value')} would be centred at run time, to save "
            f"{counted(len(stream.norms), 'norm')} the mean"
        )
    return ""
