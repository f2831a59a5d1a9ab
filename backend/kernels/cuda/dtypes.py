"""What the kernels know of the types of activations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Activation:
    """A type of x, y and dense weights.

    Attributes:
        dtype: its name.
        bytes: of a value.
        short: its name in device functions.
    """

    dtype: str
    bytes: int
    short: str

    @property
    def unit(self) -> int:
        """Values that one thread loads or copies at once, 16 bytes."""
        return 16 // self.bytes

    @property
    def words(self) -> int:
        """4-byte words of a fragment, 8 values."""
        return 2 * self.bytes


_KNOWN = {
    "float16": Activation("float16", 2, "f16"),
    "bfloat16": Activation("bfloat16", 2, "bf16"),
    "float32": Activation("float32", 4, "f32"),
}


def activation(dtype: str) -> Activation | None:
    """What is known of a type; None for one without kernels."""
    return _KNOWN.get(dtype)
