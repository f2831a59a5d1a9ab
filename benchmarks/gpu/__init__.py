"""Measures the CUDA kernels on a GPU host without network, from a bundle that is made here."""
