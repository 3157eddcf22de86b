"""Safetensors files as bases bring them: checked headers, and tensors one at a time.

A header is believed only when it agrees with itself and with the file. Tensors come by plain reads, so that memory
holds what is kept, never the file.

Layout: 8 bytes little-endian length of the header, the header (JSON), then the tensors without gaps.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import messages
from lora_scripts.adapters.safetensors_file import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    NameTwiceError,
    are_sizes,
    parse_rows,
)
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

_METADATA = "__metadata__"

# The file's word for a number format -> torch's name and bytes a number.
_FORMATS = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes `begin` to `end` behind the header; `format` is the file's own word, such as "F16"."""

    format: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> tuple[Mapping[str, Entry], Mapping[str, str], int]:
    """Return (tensors, metadata, where the tensors begin) of a file, without torch and without its tensors.

    Raises:
        BaseModelError: it is no safetensors file, is cut short, or its header contradicts itself or the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == LENGTH_BYTES else 0
        if not 2 <= length <= MAX_HEADER_BYTES or file.read(1) != b"{":
            raise BaseModelError("base.not_safetensors", path=path)
        text = b"{" + file.read(length - 1)
    if len(text) < length:
        raise BaseModelError("base.truncated", path=path, size=size, expected=LENGTH_BYTES + length)
    rows = _parse(path, text)
    metadata = rows.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad_header(path, _METADATA)
    entries = {name: _entry(path, name, row) for name, row in rows.items()}
    _check_places(path, entries, size - LENGTH_BYTES - length)
    return entries, metadata, LENGTH_BYTES + length


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        return parse_rows(text)
    except NameTwiceError as error:
        raise _bad_header(path, error.name) from error
    except ValueError as error:
        raise BaseModelError("base.not_safetensors", path=path) from error


def _bad_header(path: Path, name: str) -> BaseModelError:
    return BaseModelError("base.bad_header", path=path, name=messages.printable(name))


def _entry(path: Path, name: str, row: Any) -> Entry:
    """Check one tensor's line: a known format, and exactly the bytes that its shape needs."""
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad_header(path, name)
    shape, places = row["shape"], row["data_offsets"]
    if not are_sizes(shape) or not are_sizes(places) or len(places) != 2:
        raise _bad_header(path, name)
    if not isinstance(row["dtype"], str) or row["dtype"] not in _FORMATS:
        shown = {"name": messages.printable(name), "found": messages.printable(str(row["dtype"])[:40])}
        raise BaseModelError("base.number_format", path=path, known=", ".join(_FORMATS), **shown)
    if places[1] - places[0] != math.prod(shape) * _FORMATS[row["dtype"]][1]:
        raise _bad_header(path, name)
    return Entry(row["dtype"], tuple(shape), places[0], places[1])


def _check_places(path: Path, entries: Mapping[str, Entry], available: int) -> None:
    """Refuse tensors that overlap, leave gaps, or end elsewhere than the file does."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise _bad_header(path, name)
        end = entry.end
    if end > available:
        size = path.stat().st_size
        raise BaseModelError("base.truncated", path=path, size=size, expected=size - available + end)
    if end < available:
        raise _bad_header(path, _METADATA)


class TensorFile:
    """Names and shapes at once, tensors on request.

    Attributes:
        shapes: shape by name.
        metadata: the header's strings.

    Raises:
        BaseModelError: see `read_header`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._entries, self.metadata, self._start = read_header(path)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def count(self, prefix: str = "") -> int:
        """Return how many numbers the tensors with this prefix hold."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith(prefix))

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) in the file's order, each in memory of its own.

        Raises:
            BaseModelError: the file has become shorter since its header was read.
        """
        import torch

        with self.path.open("rb") as file:
            for name in sorted(names, key=lambda name: self._entries[name].begin):
                entry = self._entries[name]
                buffer = bytearray(entry.end - entry.begin)
                file.seek(self._start + entry.begin)
                if file.readinto(buffer) != len(buffer):
                    size = self.path.stat().st_size
                    raise BaseModelError("base.truncated", path=self.path, size=size, expected=self._start + entry.end)
                dtype = getattr(torch, _FORMATS[entry.format][0])
                raw = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
                yield name, raw.reshape(entry.shape)


def check_finite(module: nn.Module, path: Path) -> None:
    """Refuse weights with NaN or infinity, also those that overflow in the format they are held in.

    Raises:
        BaseModelError: names the first such tensor.
    """
    import torch

    for name, tensor in module.state_dict().items():
        # A sum is one pass without a mask in memory; NaN and infinity survive it.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise BaseModelError("base.weights_not_finite", path=path, name=name)


def assign(model: Any, state: Mapping[str, Any], path: Path) -> None:
    """Give a model its tensors without copying, refusing anything missing or of another shape."""
    known = model.state_dict()
    missing = sorted(known.keys() - state.keys())
    wrong = sorted(n for n in known.keys() & state.keys() if known[n].shape != state[n].shape)
    if missing or wrong:
        raise BaseModelError("base.part_missing", path=path, part=(missing + wrong)[0])
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in known}, assign=True)
    check_finite(model, path)
