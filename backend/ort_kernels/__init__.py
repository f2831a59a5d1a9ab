"""The TVM kernels of structured nodes as a library of custom operators for ONNX Runtime."""
