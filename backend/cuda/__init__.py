"""Device code for artifacts: nvcc, and TVM's CUDA module on machines without a driver."""
