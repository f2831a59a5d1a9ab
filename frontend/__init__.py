"""Captures a trained model as onnx_ir and collects the statistics of its linears."""
