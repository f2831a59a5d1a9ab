"""Fills in the types and shapes that a model does not state, without touching its weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass


def infer_missing_shapes(model: ir.Model) -> None:
    """Runs ONNX shape inference in place if some value lacks its type or shape.

    What cannot be inferred (an operator of a foreign domain) stays unknown.
    """
    values = (value for node in model.graph.all_nodes() for value in node.outputs if value.name)
    if all(value.dtype is not None and value.shape is not None for value in values):
        return
    with quiet("onnx_ir.passes.common.shape_inference"):
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Holds back what these loggers say below ERROR."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)
