"""Sites, structures, fits and rewrites on onnx_ir; depends on no other part of undense."""
