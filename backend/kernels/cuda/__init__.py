"""Kernels for NVIDIA GPUs: tiled in TIR, with tensor-core instructions as functions of a header."""
