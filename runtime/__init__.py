"""Loads, runs, verifies and times artifacts; needs neither torch nor onnx."""
