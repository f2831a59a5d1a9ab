"""CUDA on the host, for tests: generated kernels, TVM's host code and the Relax VM without a GPU."""

from cuda_emulation.device import TARGET, emulated, load
from cuda_emulation.kernels import compile
from cuda_emulation.toolchain import EmulationUnavailable

__all__ = ["TARGET", "EmulationUnavailable", "compile", "emulated", "load"]
