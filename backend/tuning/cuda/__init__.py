"""Tunes kernels for GPUs: candidates are compiled here, and measured where the GPU is."""
