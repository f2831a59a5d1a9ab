"""Scheme of a site → `Choice`: resolved for its shape and engine, or kept dense with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from .errors import SchemeError
from .plan import Choice
from .scheme import Scheme, parse_scheme
from .sites import Site
from .structures.base import DENSE_BITS, Activations, Structure
from .structures.int_codes import IntCodes


def decide(site: Site, scheme: Scheme, activations: Activations) -> Choice:
    """What a scheme means for one site.

    `auto` is the safe rule until plans are made by measurement: 8-bit codes wherever they are
    smaller than the dense weight. A structure that is asked for by name is kept only if it is
    smaller too, and if it can gather where the site is an embedding.

    Args:
        site: the site.
        scheme: `dense`, `auto`, or a structure, whose relative options are resolved here.
        activations: what `activations=auto` stands for on the target.

    Raises:
        FitError: the shape does not admit a structure that was asked for by name.
    """
    if scheme == "dense":
        return kept_dense(site, "kept dense as asked")
    automatic = scheme == "auto"
    structure = IntCodes(bits_=8) if not isinstance(scheme, Structure) else scheme
    if site.gathered and not structure.gathers:
        return kept_dense(site, f"kept dense: an embedding cannot be stored as {structure}")
    structure = structure.resolve(site.out_features, site.in_features, site=site.name)
    structure = with_activations(structure, activations)
    stored = structure.bits(site.out_features, site.in_features)
    dense = DENSE_BITS * site.out_features * site.in_features
    if stored >= dense:
        return kept_dense(
            site, f"kept dense: {structure} is not smaller ({stored} bits of {dense})"
        )
    reason = "auto: 8-bit codes are smaller" if automatic else "asked for"
    return Choice(site.name, site.in_features, site.out_features, str(structure), reason)


def settled(choice: Choice, activations: Activations) -> Choice:
    """The choice of a plan written by hand, with `activations=auto` decided as `decide` does."""
    scheme = parse_scheme(choice.scheme)
    if not isinstance(scheme, Structure):
        return choice
    return dataclasses.replace(choice, scheme=str(with_activations(scheme, activations)))


def refuse_exact_activations(choices: Iterable[Choice]) -> None:
    """The portable form rounds activations in stock ONNX Runtime, so `float` cannot be promised.

    Raises:
        SchemeError: a choice with `activations=float`, or with coded factors; names its site.
    """
    for choice in choices:
        scheme = parse_scheme(choice.scheme)
        if isinstance(scheme, Structure) and scheme.activations == "float":
            raise SchemeError(
                f"{choice.name}: stock ONNX Runtime rounds the activations of the portable form to "
                f"int8, and {scheme} takes them as they are; choose activations=auto where it has "
                "that, another scheme, or leave the portable form out"
            )


def refuse_rounded_activations(choices: Iterable[Choice]) -> None:
    """On GPUs codes are multiplied by floats, so `int8` cannot be promised.

    Raises:
        SchemeError: a choice with `activations=int8`; names its site.
    """
    for choice in choices:
        scheme = parse_scheme(choice.scheme)
        if isinstance(scheme, Structure) and scheme.activations == "int8":
            raise SchemeError(
                f"{choice.name}: on GPUs activations are not rounded to int8; leave "
                "activations=int8 out for the targets cuda and ort-cuda"
            )


def with_activations(structure: Structure, activations: Activations) -> Structure:
    """The structure with `activations=auto` replaced by what the target runs fastest."""
    return structure.with_activations(activations) if structure.activations == "auto" else structure


def kept_dense(site: Site, reason: str) -> Choice:
    """The choice of a site that stays as it is."""
    return Choice(site.name, site.in_features, site.out_features, "dense", reason)
