"""Where tensors may lie for the code that TVM generates."""

from __future__ import annotations

ALIGNMENT = 64
"""Bytes that an address must be a multiple of, which generated code takes for granted."""
