"""The header of a GGUF file: what it says of its model, which tensors it names, and how long the file
must therefore be.

Only the standard library and only the header: enough to tell a whole file from one whose download
stopped half-way, before an engine maps it. Layout: ggml's GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from memplan.errors import InputError

MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_DEEPEST_ARRAY = 4
_MOST_DIMENSIONS = 8
_MOST_LAYERS = 4096
"""Longer arrays of numbers are no property of layers."""

# ggml type number → (name, elements per block, bytes per block)
_BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

# metadata value type number → bytes; 8 is a string and 9 an array
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 7: "B", 10: "Q", 11: "q"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    name: str
    type: str
    """ggml's name, such as Q4_1; ``type 99`` for one that this reader does not know."""
    shape: tuple[int, ...]
    """Fastest dimension first, as stored."""
    offset_bytes: int
    """From the start of the file."""
    size_bytes: int | None
    """None where the type is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    version: int
    tensors: tuple[GgufTensor, ...]
    file_bytes: int
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Its whole numbers by key; of an array how many it has, under ``KEY#``, and where they are the same
    for all, such as heads by layer, that under KEY."""
    architecture: str = ""

    @property
    def needed_bytes(self) -> int:
        """The file is at least this long if it is whole."""
        return max((t.offset_bytes + (t.size_bytes or 0) for t in self.tensors), default=0)


def read_gguf_header(path: Path) -> GgufHeader:
    """Raises InputError when it is no GGUF file, or is cut off inside its header."""
    try:
        with path.open("rb") as file:
            return _header(_Cursor(file, path))
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in the path
        raise _unusable(path, f"is no path: {error}") from error


def check_gguf_whole(path: Path) -> GgufHeader:
    """The header, if the file holds every tensor that it names. Raises InputError.

    Read once as long as the file stays as it is: a vocabulary of 262,144 words takes 0.3 s.
    """
    try:
        state = path.stat()
    except (OSError, ValueError):
        return _whole_header(path, 0, 0)  # which says what is wrong
    return _whole_header(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _whole_header(path: Path, mtime_ns: int, size_bytes: int) -> GgufHeader:
    header = read_gguf_header(path)
    if header.file_bytes < header.needed_bytes:
        raise _unusable(
            path,
            f"cut off: got {header.file_bytes:,} bytes, expected at least "
            f"{header.needed_bytes:,} for its {len(header.tensors)} tensors",
        )
    return header


class _Cursor:
    """Reads forward, never past the end: a damaged length cannot ask for memory."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self.file_bytes = file.seek(0, 2)
        file.seek(0)
        self._file = file
        self.position = 0

    def take(self, count: int) -> bytes:
        self._advance(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._advance(count)
        self._file.seek(count, 1)

    def uint32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def uint64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def integer(self, value_type: int) -> int:
        """Of one of _INTEGERS."""
        letter = _INTEGERS[value_type]
        return int(struct.unpack(f"<{letter}", self.take(_SCALAR_BYTES[value_type]))[0])

    def text(self) -> str:
        return self.take(self.uint64()).decode("utf-8", errors="replace")

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > self.file_bytes:
            raise _unusable(
                self.path,
                f"cut off inside its header: got {self.file_bytes:,} bytes, "
                f"expected at least {self.position:,}",
            )


def _header(cursor: _Cursor) -> GgufHeader:
    magic = cursor.take(4) if cursor.file_bytes >= len(MAGIC) else b""
    if magic != MAGIC:
        raise _unusable(
            cursor.path, f"not a GGUF file: it starts with {magic!r}, expected {MAGIC!r}"
        )
    version = cursor.uint32()
    if version not in (2, 3):
        # A big-endian file reads as a huge version.
        raise _unusable(cursor.path, f"GGUF version: got {version}, expected 2 or 3, little-endian")
    tensor_count, metadata_count = cursor.uint64(), cursor.uint64()
    numbers, architecture = _metadata(cursor, metadata_count)
    alignment = numbers.get("general.alignment", _DEFAULT_ALIGNMENT)
    if alignment < 1:
        raise _unusable(cursor.path, f"general.alignment: got {alignment}, expected at least 1")
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    data_start = -(-cursor.position // alignment) * alignment
    return GgufHeader(
        version=version,
        tensors=tuple(_tensor(info, data_start) for info in infos),
        file_bytes=cursor.file_bytes,
        numbers=numbers,
        architecture=architecture,
    )


def _metadata(cursor: _Cursor, metadata_count: int) -> tuple[dict[str, int], str]:
    numbers: dict[str, int] = {}
    architecture = ""
    for _ in range(metadata_count):
        key, value_type = cursor.text(), cursor.uint32()
        if value_type in _INTEGERS:
            numbers[key] = cursor.integer(value_type)
        elif value_type == _ARRAY:
            element_type, count = cursor.uint32(), cursor.uint64()
            numbers[f"{key}#"] = count
            if element_type in _INTEGERS and count <= _MOST_LAYERS:
                values = {cursor.integer(element_type) for _ in range(count)}
                if len(values) == 1:
                    numbers[key] = values.pop()
            else:
                _skip_elements(cursor, element_type, count, depth=0)
        elif value_type == _STRING:
            text = cursor.text()
            architecture = text if key == "general.architecture" else architecture
        else:
            _skip_value(cursor, value_type, depth=0)
    return numbers, architecture


def _skip_value(cursor: _Cursor, value_type: int, *, depth: int) -> None:
    if value_type in _SCALAR_BYTES:
        cursor.skip(_SCALAR_BYTES[value_type])
    elif value_type == _STRING:
        cursor.skip(cursor.uint64())
    elif value_type == _ARRAY and depth < _DEEPEST_ARRAY:
        _skip_elements(cursor, cursor.uint32(), cursor.uint64(), depth=depth)
    else:
        raise _unusable(cursor.path, f"damaged header: metadata value of type {value_type}")


def _skip_elements(cursor: _Cursor, element_type: int, count: int, *, depth: int) -> None:
    if element_type in _SCALAR_BYTES:
        cursor.skip(count * _SCALAR_BYTES[element_type])
    else:
        for _ in range(count):
            _skip_value(cursor, element_type, depth=depth + 1)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.text(), cursor.uint32()
    if dimensions > _MOST_DIMENSIONS:
        raise _unusable(cursor.path, f"damaged header: tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.uint64() for _ in range(dimensions))
    return name, shape, cursor.uint32(), cursor.uint64()


def _tensor(info: tuple[str, tuple[int, ...], int, int], data_start: int) -> GgufTensor:
    name, shape, type_number, offset = info
    type_name, block_elements, block_bytes = _BLOCKS.get(
        type_number, (f"type {type_number}", None, None)
    )
    size_bytes = None
    if block_elements is not None and block_bytes is not None:
        elements = 1
        for length in shape:
            elements *= length
        size_bytes = -(-elements // block_elements) * block_bytes
    return GgufTensor(
        name=name,
        type=type_name,
        shape=shape,
        offset_bytes=data_start + offset,
        size_bytes=size_bytes,
    )


def _unusable(path: Path, text: str) -> InputError:
    return InputError(f"{path}: {text}", hint="fetch the GGUF file again, or name another one")
