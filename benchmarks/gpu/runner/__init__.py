"""What runs on the GPU host: standard library, numpy, torch and the bundled runtime of TVM only."""
