"""`Validation`: what the caller measures of a model, on data that only the caller understands."""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .passes.accuracy import DropType, parse_drop_type
from .passes.errors import SchemeError, ValidationError, cause_of
from .runtime.model import Model

ValidationFunction = Callable[[Model, Any], float]
"""The metric of a model that is called like a session; higher is better."""


@dataclass(frozen=True)
class Validation:
    """A metric of models.

    Attributes:
        function: that gives it.
        dataset: its second argument, as the caller gave it.
        drop_type: how the drop of the metric is counted.
    """

    function: ValidationFunction
    dataset: Any
    drop_type: DropType

    @staticmethod
    def checked(
        function: ValidationFunction | None, dataset: Any, drop_type: str
    ) -> Validation | None:
        """The validation of these arguments; None without a function.

        Raises:
            SchemeError: one without the other, a function that cannot be called, data that can be
                read once only, or an unknown type of drop.
        """
        counted = parse_drop_type(drop_type)
        if function is None:
            if counted != "absolute":
                raise SchemeError(
                    "validation: the drop is to be relative to a metric and there is no function "
                    "for it; give validation_fn (--validation), or leave drop_type out"
                )
            if dataset is not None:
                raise SchemeError(
                    "validation: there is data and no function; give validation_fn "
                    "(--validation), or leave the data out"
                )
            return None
        if not callable(function):
            raise SchemeError(
                f"validation: {function!r} cannot be called; give a function of a model and data"
            )
        if dataset is None:
            raise SchemeError(
                f"validation function {_name(function)}: there is no data for it; give "
                "validation_dataset (--validation-data)"
            )
        if isinstance(dataset, Iterator):
            raise SchemeError(
                f"validation function {_name(function)}: its data can be read only once, and it "
                "is called for several models; give a list"
            )
        return Validation(function, dataset, counted)

    @property
    def name(self) -> str:
        """Of the function."""
        return _name(self.function)

    def metric(self, model: Model, which: str) -> float:
        """The metric of a model, which `which` calls by its name in errors.

        Raises:
            ValidationError: the function raises, or gives no finite number.
        """
        try:
            found = self.function(model, self.dataset)
        except (Exception, SystemExit) as error:  # a script that ends is no metric
            raise ValidationError(
                f"validation function {self.name}: raised {type(error).__name__} for {which}: "
                f"{cause_of(error)}; mend it, or what it is given"
            ) from error
        try:
            metric = float(found) if np.ndim(found) == 0 and not isinstance(found, str) else None
        except (TypeError, ValueError, OverflowError):
            metric = None
        if metric is None or not math.isfinite(metric):
            raise ValidationError(
                f"validation function {self.name}: gave {_short(found)} for {which}; return one "
                "finite number, higher for a better model"
            )
        return metric


def load_function(text: str) -> ValidationFunction:
    """The function of a text `FILE.py:function`.

    Raises:
        ValidationError: another form, no such file or function, or a file that cannot be run.
    """
    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ValidationError(f"validation {text!r}: is not of the form FILE.py:function")
    if not Path(path).is_file():
        raise ValidationError(f"{path}: there is no such file; give FILE.py:function")
    found = getattr(_module(Path(path)), name, None)
    if not callable(found):
        raise ValidationError(f"{path}: has no function {name!r}; give one of a model and data")
    function: ValidationFunction = found
    return _given_copies(function)


def _given_copies(function: ValidationFunction) -> ValidationFunction:
    """The function with data of its own at each call: one that changes it is right to."""

    @functools.wraps(function)
    def measured(model: Model, data: Any) -> float:
        return function(model, copy.deepcopy(data))

    return measured


def read_dataset(path: str) -> list[dict[str, Any]]:
    """The samples of an `.npz`, in the forms of calibration data; they may hold labels too.

    Raises:
        CalibrationError: the file is not there, or no archive of plain arrays.
        ValidationError: it is empty.
    """
    from .frontend.samples import read_archive

    samples = list(read_archive(Path(path)))
    if not any(samples):
        raise ValidationError(f"{path}: holds no arrays; give samples to validate on")
    return samples


def _module(path: Path) -> Any:
    name = f"undense_validation_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ValidationError(f"{path}: cannot be loaded as Python; give FILE.py:function")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValidationError(
            f"{path}: raised {type(error).__name__} while it was loaded: {cause_of(error)}; mend it"
        ) from error
    return module


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def _short(found: object) -> str:
    text = " ".join(repr(found).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
