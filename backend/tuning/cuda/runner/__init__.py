"""What runs where the GPU is: torch, NVIDIA's driver, and nothing of undense."""
