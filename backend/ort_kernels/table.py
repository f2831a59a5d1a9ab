"""The table of a library as C++ source: its operators, forms and sites."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from string import digits

from .products import Form, Site

_CODES = {
    "bool": "kDLBool",
    "int": "kDLInt",
    "uint": "kDLUInt",
    "float": "kDLFloat",
    "bfloat": "kDLBfloat",
}
_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def table_source(sites: Sequence[Site], functions: Sequence[str]) -> str:
    """Defines what `native/kernels.h` declares; the same sites give the same text."""
    forms = list(dict.fromkeys(site.form for site in sites))
    operators = sorted({site.operator for site in sites})
    signature = "(void*, const TVMFFIAny*, int32_t, TVMFFIAny*)"
    lines = [
        '#include "kernels.h"',
        'extern "C" {',
        "extern const unsigned char undense_weights[];",
        *(f"int __tvm_ffi_{name}{signature};" for name in functions),
        "}",
        "namespace undense {",
        "namespace {",
    ]
    for number, form in enumerate(forms):
        lines += _form(f"form{number}", form)
    for number, site in enumerate(sites):
        lines.append(_array("uint64_t", f"offsets{number}", site.offsets))
    lines.append("}  // namespace")
    lines.append("const unsigned char* const kWeights = undense_weights;")
    lines.append(f"const char* const kOperators[] = {{{', '.join(map(_text, operators))}}};")
    lines.append(f"const size_t kOperatorCount = {len(operators)};")
    lines.append("const Site kSites[] = {")
    for number, site in enumerate(sites):
        constant = f"{_element(site.element_type)}, {site.elements}u"
        start = f"{len(site.start)}u, {_checksum(site.start)}u"
        shared = f"&form{forms.index(site.form)}"
        names = f"{_text(site.operator)}, {_text(site.tensor)}"
        lines.append(f"    {{{names}, {constant}, {start}, {shared}, offsets{number}}},")
    lines += ["};", f"const size_t kSiteCount = {len(sites)};", "}  // namespace undense", ""]
    return "\n".join(lines)


def _form(name: str, form: Form) -> list[str]:
    lines, stored, calls = list[str](), list[str](), list[str]()
    for number, tensor in enumerate(form.stored):
        shape = f"{name}_shape{number}"
        lines.append(_array("int64_t", shape, tensor.shape))
        lines.append(_array("int64_t", f"{shape}_strides", _strides(tensor.shape)))
        rank = len(tensor.shape)
        stored.append(f"{{{_dtype(tensor.dtype)}, {rank}, {shape}, {shape}_strides}}")
    for number, call in enumerate(form.calls):
        values = f"{name}_values{number}"
        lines.append(_array("int32_t", values, call.values))
        calls.append(f"{{__tvm_ffi_{call.function}, {len(call.values)}, {values}}}")
    computed = [f"{{{_dtype(dtype)}, {width}}}" for dtype, width in form.computed]
    lines.append(f"constexpr Stored {name}_stored[] = {{{', '.join(stored)}}};")
    lines.append(f"constexpr Computed {name}_computed[] = {{{', '.join(computed)}}};")
    lines.append(f"constexpr Step {name}_steps[] = {{{', '.join(calls)}}};")
    lines.append(
        f"constexpr Form {name} = {{{_element(form.element_type)}, {_dtype(form.dtype)}, "
        f"{form.features}, "
        f"{len(stored)}, {name}_stored, {len(computed)}, {name}_computed, "
        f"{len(calls)}, {name}_steps}};"
    )
    return lines


def _array(kind: str, name: str, numbers: Sequence[int]) -> str:
    return f"constexpr {kind} {name}[] = {{{', '.join(map(str, numbers)) or 0}}};"


def _strides(shape: Sequence[int]) -> list[int]:
    """Those of a contiguous tensor, in elements."""
    return list(accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1][: len(shape)]


def _dtype(name: str) -> str:
    kind = name.rstrip(digits)
    bits = name.removeprefix(kind) or "8"
    return f"{{{_CODES[kind]}, {bits}, 1}}"


def _element(number: int) -> str:
    return f"static_cast<ONNXTensorElementDataType>({number})"


def _text(text: str) -> str:
    """A C string literal of the UTF-8 bytes."""
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _checksum(data: bytes) -> int:
    """FNV-1a of 64 bits."""
    found = _FNV_START
    for byte in data:
        found = (found ^ byte) * _FNV_PRIME % 2**64
    return found
