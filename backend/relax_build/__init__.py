"""The lowering to Apache TVM: walks an `onnx_ir.Model`, emits Relax, schedules and compiles it."""

from __future__ import annotations

from .compile import build, check_toolchain
from .module import Signature, TvmModule
from .walker import check

__all__ = ["Signature", "TvmModule", "build", "check", "check_toolchain"]
