"""Safetensors files with the same bytes every time, and headers read without loading tensors.

The safetensors library writes the metadata of a file in random order, so two equal saves differ; here the header is
written in a fixed order and the body is the library's, byte for byte. Layout: 8 bytes little-endian length of the
header, the header (JSON, padded with spaces to a multiple of 8), then the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import BaseModelError
from lora_scripts.files import replace_file

if TYPE_CHECKING:
    from torch import Tensor

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
# A zip archive, which torch.save writes, and the bare pickles of protocols 2 to 5 before that.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

# Half of a surrogate pair: JSON can write it alone, but no file and no console takes it.
_HALF = re.compile("[\ud800-\udfff]")

# The library sorts tensors by descending alignment (its own order of types), then by name.
DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
_ORDER = {code: place for place, code in enumerate(DTYPES.values())}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor: `dtype` is the file's own word, such as "F32"."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A file's header."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file whose bytes depend on nothing but its content, or leave what was there.

    Args:
        path: replaced in one step once the new file is complete on the disk.
        metadata: strings only; written sorted by key.

    Raises:
        MachineError: no space, or the folder cannot be written.
    """
    header = encode_header(tensors, metadata)

    def write(file) -> None:
        file.write(header)
        for piece in body(tensors):
            file.write(piece)

    replace_file(path, write)


def encode_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the tensors, length field included."""
    wrong = [key for key, value in metadata.items() if not isinstance(value, str)]
    if wrong:
        raise TypeError(f"metadata values must be strings: {', '.join(wrong)}")
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in _sorted(tensors):
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _code(tensor), "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return struct.pack("<Q", len(text)) + text


def body(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Yield the tensors' bytes in the order of the file."""
    import torch

    for name in _sorted(tensors):
        flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes()


def body_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of everything behind the header: 64 hex digits, whatever the metadata says."""
    digest = hashlib.sha256()
    for piece in body(tensors):
        digest.update(piece)
    return digest.hexdigest()


def read_header(path: Path) -> Header:
    """Read and check a file's header, without torch and without its tensors.

    Raises:
        BaseModelError: it is absent, a pickle, no safetensors file, or cut short.
    """
    if not path.is_file():
        raise BaseModelError("adapter.no_file", path=path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == LENGTH_BYTES else 0
        first = file.read(1)
        text = first + file.read(length - 1) if 2 <= length <= MAX_HEADER_BYTES else first
    if not text.startswith(b"{") or not 2 <= length <= MAX_HEADER_BYTES:
        is_pickle = start.startswith(_PICKLE_STARTS) or path.suffix in PICKLE_SUFFIXES
        raise BaseModelError("adapter.pickle" if is_pickle else "adapter.not_safetensors", path=path)
    if len(text) < length:
        raise BaseModelError("adapter.truncated", path=path, size=size, expected=LENGTH_BYTES + length)
    header, end = _parse(path, text)
    expected = LENGTH_BYTES + length + end
    if size < expected:
        raise BaseModelError("adapter.truncated", path=path, size=size, expected=expected)
    return header


class NameTwiceError(ValueError):
    """A header names something twice: readers disagree which one counts."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


def parse_rows(text: bytes) -> dict[str, Any]:
    """Parse a header's JSON, whoever wrote it.

    Raises:
        NameTwiceError: a name stands there twice.
        ValueError: it is no JSON object, nests beyond sense, or holds half of a character.
    """

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise NameTwiceError(Counter(name for name, _ in pairs).most_common(1)[0][0])
        return found

    try:
        rows = json.loads(text, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(rows, dict) or (b"\\u" in text and _HALF.search(json.dumps(rows, ensure_ascii=False))):
        raise ValueError("no object of texts")
    return rows


def are_sizes(values: Any) -> bool:
    """Say whether a header's value is a list of whole numbers, none below 0."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _parse(path: Path, text: bytes) -> tuple[Header, int]:
    """Return the header and how many bytes of tensors it announces."""
    try:
        entries = parse_rows(text)
        metadata = {str(k): str(v) for k, v in entries.pop("__metadata__", {}).items()}
        if not all(are_sizes(row["shape"]) and are_sizes(row["data_offsets"]) for row in entries.values()):
            raise ValueError("sizes")
        tensors = {name: TensorInfo(str(row["dtype"]), tuple(row["shape"])) for name, row in entries.items()}
        return Header(metadata, tensors), max((row["data_offsets"][1] for row in entries.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BaseModelError("adapter.not_safetensors", path=path) from error


def _code(tensor: Tensor) -> str:
    return DTYPES[str(tensor.dtype).removeprefix("torch.")]


def _sorted(tensors: Mapping[str, Tensor]) -> list[str]:
    # Names compare as UTF-8 bytes, which is how the library compares them.
    return sorted(tensors, key=lambda name: (-_ORDER[_code(tensors[name])], name.encode()))
