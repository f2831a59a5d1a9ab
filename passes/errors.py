"""The errors of undense: each message names the layer or file, the cause and the remedy."""

from __future__ import annotations


class UndenseError(Exception):
    """What the user can mend; the command line prints it as one sentence and exits with 2."""


class LoadError(UndenseError):
    """A model file or object that cannot be captured."""


class CalibrationError(UndenseError):
    """Calibration samples that do not fit the model."""


class ValidationError(UndenseError):
    """A validation function that cannot be loaded, fails, or gives no metric."""


class SchemeError(UndenseError):
    """A scheme text, rule or option that is not understood."""


class PlanError(UndenseError):
    """A plan that does not fit the model, the data, the seed or the versions at hand."""


class FitError(UndenseError):
    """A weight that a structure cannot be fitted to."""

    def __init__(self, site: str, cause: str, remedy: str) -> None:
        super().__init__(f"{site}: {cause}; {remedy}")
        self.site = site
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[FitError], tuple[str, str, str]]:
        """Its three parts: a process that fits sends its error to the one that waits for it."""
        return FitError, (self.site, self.cause, self.remedy)


class SchedulerError(UndenseError):
    """A scheduler of a cluster that does not answer, or has no workers."""


class CheckError(UndenseError):
    """A model that is not well-formed."""


class PrecisionError(UndenseError):
    """A model, weight or constant that cannot be converted to the floating type asked for."""


class LoweringError(UndenseError):
    """An operator or type that a backend does not cover."""


class TargetError(UndenseError):
    """A target that is not known, not there yet, or not usable on this machine."""


class TuningError(UndenseError):
    """Records of measurements, or machines to measure on, that cannot be used."""


class ArtifactError(UndenseError):
    """An artifact that is incomplete, damaged or of another format version."""


class InputError(UndenseError):
    """Inputs of a call that do not fit the signature of the module."""


class MissingDependencyError(UndenseError):
    """A package or program that this call needs and that is not installed."""


def cause_of(error: BaseException) -> str:
    """What an error of a library says, in one line; a system's error without number and path."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())
