"""The real models of the benchmarks as plain PyTorch modules that export cleanly."""
