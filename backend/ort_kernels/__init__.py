"""The TVM kernels of structured nodes as a library of custom operators for ONNX Runtime."""

from .library import HOST, build, check_toolchain

__all__ = ["HOST", "build", "check_toolchain"]
