"""Times the kernels of single layers on this machine, for plans that are made by measurement."""

from __future__ import annotations

from .layer import Layer, Time
from .machine import check_measurable
from .measure import kernel_times
from .sites import site_times
from .whole_run import WholeRun

__all__ = [
    "Layer",
    "Time",
    "WholeRun",
    "check_measurable",
    "kernel_times",
    "site_times",
]
