"""Tensors of a safetensors file, one at a time by plain reads: memory holds what is kept, never the file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.adapters.safetensors_file import read_header

if TYPE_CHECKING:
    from torch import Tensor

_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
}


class TensorFile:
    """Names and shapes at once, tensors on request.

    Attributes:
        shapes: shape by name.
        metadata: the header's strings.

    Raises:
        BaseModelError: the header is broken, or promises more than the file holds.
    """

    def __init__(self, path: Path):
        self.path = path
        header = read_header(path)
        self.shapes = {name: info.shape for name, info in header.tensors.items()}
        self.metadata = header.metadata
        self._dtypes = {name: info.dtype for name, info in header.tensors.items()}
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            rows = json.loads(file.read(length))
        self._places = {name: row["data_offsets"] for name, row in rows.items() if name != "__metadata__"}
        self._start = 8 + length

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) in the file's order, each in memory of its own."""
        import torch

        with self.path.open("rb") as file:
            for name in sorted(names, key=lambda name: self._places[name][0]):
                begin, end = self._places[name]
                buffer = bytearray(end - begin)
                file.seek(self._start + begin)
                file.readinto(buffer)
                dtype = getattr(torch, _TORCH[self._dtypes[name]])
                raw = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
                yield name, raw.reshape(self.shapes[name])
