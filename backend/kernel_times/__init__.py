"""Times the kernels of single layers on this machine, for plans that are made by measurement."""

from __future__ import annotations

from .layer import Layer, Time
from .machine import check_measurable
from .measure import kernel_times
from .table import Table

__all__ = ["Layer", "Table", "Time", "check_measurable", "kernel_times"]
