"""`verify`: does the engine compute what it should, and how far is that from the dense model?

The execution error (engine against the numpy reference of the rewritten model) must be of the
order of rounding. The approximation error (reference against the dense model) is the price of the
structures: it is reported, and nothing here judges it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..passes.errors import ArtifactError
from .arrays import as_declared, read_npz, write_npz
from .artifact import EXAMPLES, REFERENCES, Artifact
from .compare import relative_error, worst_error
from .session import Session, load

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class OutputErrors:
    """The largest relative errors of one output over the stored samples.

    Attributes:
        execution_error: engine against reference.
        tolerance: that the execution error must not exceed.
        approximation_error: reference against dense model.
    """

    execution_error: float
    tolerance: float
    approximation_error: float

    @property
    def holds(self) -> bool:
        """Whether the execution error is within its tolerance."""
        return self.execution_error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        engine: that ran.
        samples: number of stored samples.
        outputs: errors by name of the output.
        fresh_error: engine against dense model on fresh samples; None if none were given.
    """

    engine: str
    samples: int
    outputs: Mapping[str, OutputErrors]
    fresh_error: float | None

    @property
    def holds(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(errors.holds for errors in self.outputs.values())

    @property
    def execution_error(self) -> float:
        """The largest over the outputs."""
        return max(errors.execution_error for errors in self.outputs.values())

    @property
    def approximation_error(self) -> float:
        """The largest over the outputs."""
        return max(errors.approximation_error for errors in self.outputs.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object; null stands for an error that is infinite because of a NaN."""
        document: dict[str, Any] = {
            "holds": self.holds,
            "execution_error": _number(self.execution_error),
            "approximation_error": _number(self.approximation_error),
            "engine": self.engine,
            "samples": self.samples,
            "outputs": {
                name: {
                    "holds": errors.holds,
                    "execution_error": _number(errors.execution_error),
                    "tolerance": errors.tolerance,
                    "approximation_error": _number(errors.approximation_error),
                }
                for name, errors in self.outputs.items()
            },
        }
        if self.fresh_error is not None:
            document["fresh_approximation_error"] = _number(self.fresh_error)
        return document


def verify(
    artifact: str | Path | Session, fresh: Iterable[tuple[Arrays, Arrays]] | None = None
) -> Verification:
    """Reruns the held-out samples stored in an artifact and compares with both stored outputs.

    Args:
        artifact: a path, which is loaded with its default engine, or a session.
        fresh: further samples, each with the outputs of the dense model for it.

    Raises:
        ArtifactError: the artifact is damaged, or holds no samples, references or tolerances.
        InputError: fresh samples that do not fit the module.
    """
    session = artifact if isinstance(artifact, Session) else load(artifact)
    samples = _stored_samples(session.artifact)
    results = [session.run(sample.inputs) for sample in samples]
    outputs = {}
    for info in session.outputs:
        name, tolerance = info.name, session.manifest.execution_tolerance.get(info.name)
        if tolerance is None:
            raise _incomplete(session.artifact, f"no execution tolerance for output {name}")
        pairs = list(zip(results, samples, strict=True))
        outputs[name] = OutputErrors(
            max(relative_error(result[name], sample.reference[name]) for result, sample in pairs),
            tolerance.bound,
            max(relative_error(sample.reference[name], sample.dense[name]) for sample in samples),
        )
    if fresh is None:
        return Verification(session.engine, len(samples), outputs, None)
    errors = [worst_error(session.run(inputs), dense) for inputs, dense in fresh]
    return Verification(session.engine, len(samples), outputs, max(errors, default=None))


def stored_inputs(artifact: Artifact) -> list[dict[str, NDArray[Any]]]:
    """The held-out samples of an artifact, by input name.

    Raises:
        ArtifactError: it holds none.
    """
    arrays = read_npz(artifact.file(EXAMPLES))
    indices = sorted({int(name.partition("/")[0]) for name in arrays})
    if not indices:
        raise _incomplete(artifact, "no stored samples")
    samples = (_under(arrays, f"{index}/") for index in indices)
    return [as_declared(sample, artifact.manifest.inputs) for sample in samples]


def write_expectations(
    folder: Path,
    inputs: Sequence[Arrays],
    dense: Sequence[Arrays],
    references: Sequence[Arrays],
) -> None:
    """Stores samples with the two outputs that `verify` compares: dense model's and reference's."""
    samples: dict[str, NDArray[Any]] = {}
    outputs: dict[str, NDArray[Any]] = {}
    for index, arrays in enumerate(inputs):
        samples |= {f"{index}/{name}": array for name, array in arrays.items()}
        for kind, found in (("dense", dense[index]), ("reference", references[index])):
            outputs |= {f"{index}/{kind}/{name}": array for name, array in found.items()}
    write_npz(folder / EXAMPLES, samples)
    write_npz(folder / REFERENCES, outputs)


@dataclass(frozen=True, eq=False)
class _Sample:
    inputs: Arrays
    reference: Arrays
    dense: Arrays


def _stored_samples(artifact: Artifact) -> list[_Sample]:
    outputs = read_npz(artifact.file(REFERENCES))
    samples = []
    for index, inputs in enumerate(stored_inputs(artifact)):
        sample = _Sample(
            inputs,
            _under(outputs, f"{index}/reference/"),
            _under(outputs, f"{index}/dense/"),
        )
        for info in artifact.manifest.outputs:
            if info.name not in sample.reference or info.name not in sample.dense:
                raise _incomplete(artifact, f"no stored output {info.name} of sample {index}")
        samples.append(sample)
    return samples


def _under(arrays: Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): v for name, v in arrays.items() if name.startswith(prefix)}


def _incomplete(artifact: Artifact, what: str) -> ArtifactError:
    return ArtifactError(f"{artifact.path} holds {what}; build the artifact again")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
