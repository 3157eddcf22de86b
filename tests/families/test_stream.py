"""Headers are believed only when they agree with themselves and the file; tensors come one at a time."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts.errors import BaseModelError
from lora_scripts.families._stream import TensorFile, check_finite


def line(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def write(path: Path, header: object, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


# name, header (bytes as they are, anything else as JSON), bytes behind it, code
BROKEN = [
    ("deep nesting", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "base.not_safetensors"),
    ("not JSON", b'{"a": ', b"", "base.not_safetensors"),
    ("not UTF-8", b'{"\xff": 1}', b"", "base.not_safetensors"),
    ("a list", b"[1, 2]", b"", "base.not_safetensors"),
    ("a name twice", b'{"a":' + json.dumps(line(0, 4)).encode() + b',"a":' + json.dumps(line(0, 4)).encode() + b"}",
     b"\0" * 4, "base.bad_header"),
    ("overlap", {"a": line(0, 8), "b": line(4, 12)}, b"\0" * 12, "base.bad_header"),
    ("the same place", {"a": line(0, 8), "b": line(0, 8)}, b"\0" * 8, "base.bad_header"),
    ("a gap", {"a": line(0, 4), "b": line(8, 12)}, b"\0" * 12, "base.bad_header"),
    ("bytes nobody names", {"a": line(0, 4)}, b"\0" * 12, "base.bad_header"),
    ("beyond the file", {"a": line(0, 400)}, b"\0" * 12, "base.truncated"),
    ("shape lies", {"a": line(0, 8, [3])}, b"\0" * 8, "base.bad_header"),
    ("format lies", {"a": line(0, 8, [2], "F16")}, b"\0" * 8, "base.bad_header"),
    ("unknown format", {"a": line(0, 8, [2], "Q4_0")}, b"\0" * 8, "base.number_format"),
    ("huge shape", {"a": line(0, 8, [2**62, 2**62])}, b"\0" * 8, "base.bad_header"),
    ("negative side", {"a": line(0, 8, [-2, -1])}, b"\0" * 8, "base.bad_header"),
    ("negative place", {"a": line(-8, 0)}, b"\0" * 8, "base.bad_header"),
    ("a switch for a number", {"a": line(0, 4, [True])}, b"\0" * 4, "base.bad_header"),
    ("a fraction", {"a": line(0, 4, [1.0])}, b"\0" * 4, "base.bad_header"),
    ("no places", {"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4, "base.bad_header"),
    ("one place", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, b"\0" * 4, "base.bad_header"),
    ("a tensor that is text", {"a": "b"}, b"", "base.bad_header"),
    ("metadata that is no text", {"__metadata__": {"a": 1}}, b"", "base.bad_header"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "body", "code"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_header_is_refused(tmp_path, header, body, code):
    path = write(tmp_path / "x.safetensors", header, body)
    with pytest.raises(BaseModelError) as caught:
        TensorFile(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_the_table_is_whole():
    assert len(BROKEN) == 22


@pytest.mark.parametrize("data", [b"", b"\x02", b"\xff" * 16, struct.pack("<Q", 2) + b"[]"], ids=range(4))
def test_other_files_are_no_safetensors(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(BaseModelError) as caught:
        TensorFile(tmp_path / "x")
    assert caught.value.code == "base.not_safetensors"


@pytest.mark.parametrize("left", [9, 40, -1])
def test_a_file_that_is_cut_anywhere_is_called_cut(tmp_path, left):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.arange(100.0)}, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BaseModelError) as caught:
        TensorFile(path)
    assert caught.value.code == "base.truncated"


def test_every_format_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "x.safetensors"
    formats = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
    formats += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    tensors = {str(f): (torch.arange(6).reshape(2, 3) - 1).to(f) for f in formats}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    save_file(tensors, path, metadata={"a": "b"})
    file = TensorFile(path)
    read = dict(file.read(tensors))
    assert len(read) == len(tensors) == 14
    assert file.metadata == {"a": "b"}
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert torch.equal(read["scalar"], load_file(path)["scalar"])
    assert file.count() == 12 * 6 + 1


def test_a_file_that_shrinks_after_its_header_was_read_is_not_read_as_zeros(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.ones(100)}, path)
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BaseModelError) as caught:
        dict(file.read(["weight"]))
    assert caught.value.code == "base.truncated"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused(value, dtype):
    layer = torch.nn.Linear(4, 4).to(dtype)
    check_finite(layer, Path("x"))
    layer.weight.data[2, 3] = value
    with pytest.raises(BaseModelError, match="weight") as caught:
        check_finite(layer, Path("x"))
    assert caught.value.code == "base.weights_not_finite"


def test_many_large_finite_weights_are_no_infinity():
    layer = torch.nn.Linear(300, 300).half()
    layer.weight.data.fill_(60_000.0)
    check_finite(layer, Path("x"))
