"""Renames a library that an ELF file needs, and the version of the symbols it wants from there."""

from __future__ import annotations

import struct

_SECTION = struct.Struct("<IIQQQQIIQQ")
_NEEDED_VERSIONS = 0x6FFFFFFE  # SHT_GNU_verneed
_STRINGS = 3  # SHT_STRTAB


def rename_needed(image: bytes, before: str, after: str) -> bytes:
    """The same 64-bit little-endian ELF file, which needs `after` where it needed `before`.

    The names must be equally long: the dynamic linker's strings stay where they are. A version
    that bears the library's name is renamed too, with the hash the linker compares.
    """
    old, new = before.encode() + b"\0", after.encode() + b"\0"
    if len(old) != len(new):
        raise ValueError(f"{before} and {after} are not equally long")
    patched = bytearray(image)
    (table,) = struct.unpack_from("<Q", patched, 0x28)
    count = struct.unpack_from("<H", patched, 0x3C)[0]
    sections = [_SECTION.unpack_from(patched, table + i * _SECTION.size) for i in range(count)]
    versions = next(section for section in sections if section[1] == _NEEDED_VERSIONS)
    strings = sections[versions[6]]
    assert strings[1] == _STRINGS
    begin, end = strings[4], strings[4] + strings[5]
    at = patched.find(b"\0" + old, begin, end) + 1
    if at == 0:
        raise ValueError(f"the library does not need {before}")
    patched[at : at + len(new)] = new
    _rehash_versions(patched, versions[4], at - begin, after)
    return bytes(patched)


def _rehash_versions(image: bytearray, file: int, name: int, text: str) -> None:
    """Gives the versions whose name lies at offset `name` of the strings the hash of `text`."""
    following = 1
    while following:
        _, count, _, first, following = struct.unpack_from("<HHIII", image, file)
        version = file + first
        for _ in range(count):
            _, _, _, version_name, step = struct.unpack_from("<IHHII", image, version)
            if version_name == name:
                struct.pack_into("<I", image, version, _elf_hash(text))
            version += step
        file += following


def _elf_hash(text: str) -> int:
    """The System V hash of a symbol's or a version's name."""
    value = 0
    for byte in text.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value
