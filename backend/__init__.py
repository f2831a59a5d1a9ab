"""Lowers a rewritten model to an engine: ONNX Runtime or Apache TVM."""
