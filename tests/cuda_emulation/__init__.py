"""CUDA on the host, for tests: generated kernels, TVM's host code, the Relax VM, and no GPU."""

from cuda_emulation.device import TARGET, emulated, graph_launches, load
from cuda_emulation.kernels import compile
from cuda_emulation.toolchain import EmulationUnavailable

__all__ = ["TARGET", "EmulationUnavailable", "compile", "emulated", "graph_launches", "load"]
