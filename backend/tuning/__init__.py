"""Finds tilings by measuring, keeps what was found, and gives it to the kernels of a compile."""
