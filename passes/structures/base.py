"""`Structure`: y = x Ŵᵀ with a Ŵ of a certain form; hyper-parameters only, never weights."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import SchemeError
from ..stats import Stats

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "undense"
"""The ONNX domain of structured operators; its functions are written to the model itself."""

DENSE_BITS = 32
"""Sites are float32 models' weights as they run; narrower storage is widened at load."""

Factors = dict[str, NDArray[np.generic]]
"""Logical, unpacked factors by name: floats, or int8 codes with their scales."""

Form = Literal["fast", "cuda", "portable"]
"""`fast` is what stock ONNX Runtime runs fastest on CPUs (com.microsoft operators included), `cuda`
what its CUDA provider does; `portable` uses standard operators only."""

Activations = Literal["auto", "float", "int8"]


class Structure(ABC):
    """A frozen dataclass of hyper-parameters that fits, evaluates and writes one form of weight.

    All weights are `[out_features, in_features]`. The fields are the options of the scheme text:
    `low_rank{ratio=0.5}`; a field named like a method ends in an underscore (`fit_`), which the
    text leaves out. `resolve` turns relative ones (`ratio`) into absolute ones (`rank`) for one
    shape; every other method wants a resolved structure.
    """

    kind: ClassVar[str]
    """Name in scheme texts: `low_rank`."""
    op_type: ClassVar[str]
    """Name of the ONNX operator in the domain `undense`: `LowRank`."""
    gathers: ClassVar[bool] = False
    """Whether an embedding (Gather of rows) can be stored in this form."""

    def __str__(self) -> str:
        """The scheme text, without the fields that keep their defaults."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        }
        text = ",".join(
            f"{name.rstrip('_')}={format_field(value)}" for name, value in fields.items()
        )
        return f"{self.kind}{{{text}}}" if text else self.kind

    @property
    def activations(self) -> Activations | None:
        """Whether x is rounded to int8; None for a structure that no engine rounds it for.

        `int8` rounds in blocks, as the fastest kernels do; `float` does not. `auto` is decided by
        the backend and counts as `float` until then.
        """
        return None

    def with_activations(self, activations: Activations) -> Self:
        """The same structure with another value of `activations`, if it has one."""
        return self

    @classmethod
    @abstractmethod
    def candidates(cls, out_features: int, in_features: int) -> Sequence[Structure]:
        """Resolved options that a planner should consider for this shape."""

    @abstractmethod
    def resolve(self, out_features: int, in_features: int, *, site: str) -> Structure:
        """The same structure with every relative option made absolute.

        Raises:
            FitError: the shape does not admit the options; the message names `site`.
        """

    @abstractmethod
    def fit(
        self, weight: NDArray[np.floating], stats: Stats | None, *, seed: int, site: str
    ) -> Factors:
        """Factors of the best Ŵ this method finds: under `stats` if given, else data-free.

        Does not change `weight`; the same arguments give the same bytes.

        Raises:
            FitError: NaN or infinite weights, or a shape that does not fit; names `site`.
        """

    def random_factors(self, out_features: int, in_features: int, *, seed: int) -> Factors:
        """Factors of the names, shapes and types of `fit` that mean nothing: kernels are timed so.

        Here those of a random weight; structures whose fit takes long draw their own.
        """
        weight = random_matrix(np.random.default_rng(seed), out_features, in_features)
        return self.fit(weight, None, seed=seed, site="random weight")

    @abstractmethod
    def dense(self, factors: Factors) -> NDArray[np.float64]:
        """Ŵ, `[out_features, in_features]`, in float64."""

    def reference(self, factors: Factors, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """`x Ŵᵀ` for `x: [..., in_features]` in the dtype of `x`, as plain numpy.

        Structures that round activations round them here exactly as the engines do.
        """
        product: NDArray[np.floating] = x @ self.dense(factors).T.astype(x.dtype)
        return product

    def reference_rows(
        self, factors: Factors, indices: NDArray[np.integer], dtype: np.dtype[np.floating]
    ) -> NDArray[np.floating]:
        """`Ŵ[indices]`: the gather of an embedding stored in this form, in `dtype`."""
        rows: NDArray[np.floating] = self.dense(factors)[indices].astype(dtype)
        return rows

    @abstractmethod
    def bits(self, out_features: int, in_features: int) -> int:
        """Stored bits of all tensors of `pack(factors, "fast")`."""

    @abstractmethod
    def macs(self, out_features: int, in_features: int) -> int:
        """Multiply-accumulates for one row of x."""

    def pack(self, factors: Factors, form: Form) -> dict[str, ir.TensorProtocol]:
        """The tensors the ONNX function takes behind x, in order; names are their suffixes.

        Here: the factors as they are, for structures whose factors are plain floats.
        """
        import onnx_ir as ir

        return {name: ir.tensor(factor) for name, factor in factors.items()}

    def unpack(
        self, tensors: Mapping[str, ir.TensorProtocol], out_features: int, in_features: int
    ) -> Factors:
        """The inverse of `pack` in either form, exact for codes."""
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def attributes(self, out_features: int, in_features: int, form: Form) -> dict[str, int]:
        """Attributes of the node, as the ONNX function wants them; here none."""
        return {}

    @abstractmethod
    def function(self, form: Form, opset: int) -> ir.Function:
        """The meaning of the node as a model-local function.

        It imports `opset` of the standard domain, which is that of the model.
        """

    def gathers_in(self, form: Form) -> bool:
        """Whether an embedding can be stored so in this form."""
        return self.gathers

    def gather_function(self, form: Form, opset: int) -> ir.Function:
        """`undense.{op_type}Gather(indices, *pack)`: rows of Ŵ, reading the same tensors."""
        raise SchemeError(f"{self.kind} cannot hold an embedding; choose int_codes or dense for it")


def random_matrix(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Normal values over the square root of the last axis, which keep the size of what they map."""
    values = random.standard_normal(shape, dtype=np.float32)
    values /= np.float32(np.sqrt(shape[-1]))
    return values


def format_field(value: object) -> str:
    """A field's value as scheme texts write it: `true`, `0.5`, `compensated`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_function(text: str, opset: int, *, contrib: bool = False) -> ir.Function:
    """A function of the domain `undense` from ONNX's text form.

    Args:
        text: `Name (x, w) => (y) { ... }`.
        opset: version of the standard domain that it imports.
        contrib: whether it uses operators of `com.microsoft`.
    """
    import onnx.parser
    import onnx_ir as ir

    imports = f'"": {opset}' + (', "com.microsoft": 1' if contrib else "")
    proto = onnx.parser.parse_function(f'<opset_import: [{imports}], domain: "{DOMAIN}">\n{text}')
    return ir.serde.deserialize_function(proto)
