"""`Ŵ[i, j] = Σ_k t_k[i, j] · scale_k[i, j // group]`: sums of planes of trits −1, 0, 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SchemeError
from ..linalg import check_weight, fit_moment
from ..stats import Stats
from .base import Activations, Factors, Form
from .block_quantized import (
    TWO_BIT_BLOCKS,
    BlockQuantized,
    Term,
    block_scales,
    group_count,
    group_scales,
    is_portable,
    largest_group,
    pack_codes,
    pack_portable,
    packed_function,
    portable_function,
    random_codes,
    random_scales,
    scaled,
    unpack_codes,
    unpack_portable,
)
from .levels import integer_codes, trit_codes, trit_patterns

if TYPE_CHECKING:
    import onnx_ir as ir

Storage = Literal["4bit", "2bit", "base3"]


@dataclass(frozen=True)
class TritPlanes(BlockQuantized):
    """One to three planes of trits, with scales tied to powers of three or free.

    Tied scales make one integer code of the planes, `c = 3 t_1 + t_2` from −4 to 4 for two and
    `9 t_1 + 3 t_2 + t_3` from −13 to 13 for three, with one scale a group. Free scales are those of
    PTQTP (arXiv 2509.16989). The compensated fit is GPTQ's on these levels; without statistics it
    rounds to the nearest level, as does `fit=ptqtp`, the published fit, which sees no data at all.

    Factors: tied, `codes`, int8 `[m, n]`, and `scales`, float32 `[m, ceil(n / group)]`; free,
    `planes`, int8 `[K, m, n]`, and `scales`, float32 `[K, m, groups]`, falling along K.

    In model.onnx the packed forms are, low bits first and with the default zero point,
    - tied, one plane: one 2-bit MatMulNBits, or with `pack=4bit` a 4-bit one;
    - tied, two planes: one 4-bit MatMulNBits, whatever `pack` says, since two 2-bit ones have the
      same bytes and take longer;
    - tied, three planes: a 4-bit one for `3 t_1 + t_2`, with three times the scales, and a 2-bit
      one for `t_3`: 6 bits instead of 8 in one 8-bit node, and one node less than three 2-bit ones.
      On CUDA both scales are stored, since ONNX Runtime would multiply those of 16 bits each time;
    - free: a 2-bit one for each plane.
    Scales are stored once for each block, which is at most 128 on CPUs and 64 on CUDA where a node
    has 2 bits, and divides in_features on CUDA if it can. The portable form is one INT4 tensor for
    tied planes (INT8 for three) and one INT4 tensor for each free plane, dequantised by
    DequantizeLinear: INT2 would need opset 25. How a TVM module stores the planes is `storage`.

    Attributes:
        planes: K.
        group: columns that share a scale; the last group may be partial.
        tied: whether scales are tied to powers of three.
        fit_: the method, `fit` in scheme texts.
        pack_: the bytes, `pack` in scheme texts; None is 4bit for two tied planes, else 2bit.
        activations: whether x is rounded to int8; see `BlockQuantized`.
    """

    kind: ClassVar[str] = "trit_planes"
    op_type: ClassVar[str] = "TritPlanes"

    planes: Literal[1, 2, 3] = 2
    group: int = 128
    tied: bool = True
    fit_: Literal["compensated", "ptqtp"] = "compensated"
    pack_: Storage | None = None
    activations: Activations = "auto"

    def __post_init__(self) -> None:
        if self.planes not in (1, 2, 3):
            raise SchemeError(f"planes is one of 1, 2, 3, not {self.planes}")
        self._check_group()
        if self.pack_ == "4bit" and not (self.tied and self.planes <= 2):
            raise SchemeError("pack=4bit holds up to two tied planes; choose 2bit or base3")
        if self.group < TWO_BIT_BLOCKS[0] and any(term.bits == 2 for term in self.terms):
            raise SchemeError(
                f"2-bit planes need a group of {TWO_BIT_BLOCKS[0]} or more, not {self.group}, for "
                "which ONNX Runtime has no kernel; choose a larger group, or two tied planes"
            )

    @classmethod
    def candidates(cls, out_features: int, in_features: int) -> Sequence[TritPlanes]:
        """One, two and three tied planes, in the largest group up to 128 that divides n.

        Also in the default group where it does not divide: that can be smaller, and faster.
        """
        groups = dict.fromkeys([cls().group, largest_group(in_features)])
        return [cls(planes=planes, group=group) for group in groups for planes in (1, 2, 3)]

    def resolve(self, out_features: int, in_features: int, *, site: str) -> TritPlanes:
        """Itself: every shape admits it."""
        return self

    @property
    def storage(self) -> Storage:
        """`pack_` with its default decided."""
        return self.pack_ or ("4bit" if self.tied and self.planes == 2 else "2bit")

    @property
    def terms(self) -> tuple[Term, ...]:
        """The nodes of the packed forms, as the class says."""
        if not self.tied:
            return (Term(2, None),) * self.planes if self.planes > 1 else (Term(2),)
        if self.planes == 1:
            return (Term(4 if self.storage == "4bit" else 2),)
        return (Term(4),) if self.planes == 2 else (Term(4, 3.0), Term(2))

    def _terms_in(self, form: Form) -> tuple[Term, ...]:
        """The nodes of a packed form: on CUDA each of several has scales of its own."""
        if form == "cuda" and len(self.terms) > 1:
            return tuple(Term(term.bits, None) for term in self.terms)
        return self.terms

    def fit(
        self, weight: NDArray[np.floating], stats: Stats | None, *, seed: int, site: str
    ) -> Factors:
        """Trits and scales; there is nothing random in it."""
        target = check_weight(weight, site)
        moment = fit_moment(stats, target.shape[1], site)
        if self.fit_ == "ptqtp":
            moment = None
        if self.tied:
            high = _high(self.planes)
            codes, scales = integer_codes(target, moment, -high, high, self.group)
            return {"codes": codes, "scales": scales}
        planes, scales = trit_codes(target, moment, self.planes, self.group)
        return {"planes": planes, "scales": scales}

    def random_factors(self, out_features: int, in_features: int, *, seed: int) -> Factors:
        """Codes, or trits, out of the whole range, and scales by which a plane stays below one."""
        random, groups = np.random.default_rng(seed), group_count(in_features, self.group)
        high = _high(self.planes) if self.tied else 1
        stacked = () if self.tied else (self.planes,)
        codes = random_codes(random, -high, high, *stacked, out_features, in_features)
        scales = random_scales(random, high, *stacked, out_features, groups)
        return {"codes" if self.tied else "planes": codes, "scales": scales}

    def dense(self, factors: Factors) -> NDArray[np.float64]:
        """Codes, or planes, times the scales of their group."""
        codes = factors["codes" if self.tied else "planes"]
        weighted = scaled(codes, factors["scales"], self.group)
        return weighted if self.tied else weighted.sum(axis=0)

    def macs(self, out_features: int, in_features: int) -> int:
        """Tied planes are one code and cost what the dense weight does, free ones each as much."""
        return (1 if self.tied else self.planes) * out_features * in_features

    def pack(self, factors: Factors, form: Form) -> dict[str, ir.TensorProtocol]:
        """Codes of each node, then scales, as the functions of each form take them."""
        import onnx_ir as ir

        if form == "portable":
            return self._pack_portable(factors)
        block = self.block_in(form, factors["codes" if self.tied else "planes"].shape[-1])
        codes, scales = self._term_codes(factors), self._group_scales(factors, block)
        if self.tied and self._terms_in(form) != self.terms:
            scales = [np.float32(term.factor or 1) * scales[0] for term in self.terms]
        tensors = {
            f"codes{name}": pack_codes(plane, term.bits, block)
            for name, term, plane in zip(_names(len(codes)), self.terms, codes, strict=True)
        }
        for name, scale in zip(_names(len(scales)), scales, strict=True):
            tensors[f"scales{name}"] = ir.tensor(scale)
        return tensors

    def _term_codes(self, factors: Factors) -> list[NDArray[np.int8]]:
        if not self.tied:
            return list(factors["planes"].astype(np.int8))
        codes = factors["codes"].astype(np.int8)
        if len(self.terms) == 1:
            return [codes]
        upper = (codes + np.int8(1)) // np.int8(3)
        return [upper, codes - np.int8(3) * upper]

    def _group_scales(self, factors: Factors, block: int) -> list[NDArray[np.float32]]:
        """Scales of the blocks, `[m, blocks]`, one or one for each plane."""
        columns = factors["codes" if self.tied else "planes"].shape[-1]
        blocks = block_scales(factors["scales"], self.group, block, columns)
        return [blocks] if self.tied else list(blocks)

    def _pack_portable(self, factors: Factors) -> dict[str, ir.TensorProtocol]:
        import onnx_ir as ir

        codes = factors["codes"][None] if self.tied else factors["planes"]
        scales = self._group_scales(factors, self.block)
        tensors: dict[str, ir.TensorProtocol] = {
            f"codes{name}": pack_portable(
                plane.astype(np.int8), 8 if self.tied and self.planes == 3 else 4
            )
            for name, plane in zip(_names(len(codes)), codes, strict=True)
        }
        for name, scale in zip(_names(len(codes)), scales, strict=True):
            tensors[f"scales{name}"] = ir.tensor(np.ascontiguousarray(scale.T))
        return tensors

    def unpack(
        self, tensors: Mapping[str, ir.TensorProtocol], out_features: int, in_features: int
    ) -> Factors:
        """The inverse of `pack` in either form."""
        first = next(iter(tensors.values()))
        if is_portable(first):
            return self._unpack_portable(tensors)
        codes = [
            unpack_codes(tensors[f"codes{name}"], term.bits, in_features)
            for name, term in zip(_names(len(self.terms)), self.terms, strict=True)
        ]
        scales = [
            group_scales(tensor, first, self.terms[0].bits, self.group)
            for name, tensor in tensors.items()
            if name.startswith("scales")
        ]
        if not self.tied:
            return {"planes": np.stack(codes), "scales": np.stack(scales)}
        joined = codes[0] if len(codes) == 1 else np.int8(3) * codes[0] + codes[1]
        return {"codes": joined, "scales": scales[-1]}

    def _unpack_portable(self, tensors: Mapping[str, ir.TensorProtocol]) -> Factors:
        names = _names(1 if self.tied else self.planes)
        step = self.group // self.block
        codes = [unpack_portable(tensors[f"codes{name}"]) for name in names]
        scales = [
            np.ascontiguousarray(tensors[f"scales{name}"].numpy().T[:, ::step]) for name in names
        ]
        if self.tied:
            return {"codes": codes[0], "scales": scales[0]}
        return {"planes": np.stack(codes), "scales": np.stack(scales)}

    def function(self, form: Form, opset: int) -> ir.Function:
        """The sum of the products with each node's codes."""
        if form == "portable":
            return portable_function(self.op_type, 1 if self.tied else self.planes, opset)
        return packed_function(self.op_type, self._terms_in(form), opset)


def split_trits(codes: NDArray[np.int8], planes: int) -> NDArray[np.int8]:
    """The trits of tied codes, `[planes, *codes.shape]`: `c = Σ_k 3^(planes-1-k) t_k`."""
    patterns = trit_patterns(planes)
    return np.ascontiguousarray(
        np.moveaxis(patterns[codes.astype(np.int16) + _high(planes)], -1, 0)
    )


def _high(planes: int) -> int:
    """The largest code of tied planes."""
    return int(3**planes - 1) // 2


def _names(count: int) -> list[str]:
    """Suffixes of tensor names: none for a single one."""
    return [""] if count == 1 else [f"_{k}" for k in range(count)]
