"""Safetensors files: the library's body, a fixed header, and headers read without tensors."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_scripts.adapters.safetensors_file import DTYPES, body_hash, read_header, save
from lora_scripts.errors import BaseModelError, MachineError

METADATA = {"zeta": "last", "alpha": 'a "quoted" \\ word', "name": "样式 é \u2028 \x07", "empty": ""}


def tensors() -> dict[str, torch.Tensor]:
    """Return one tensor of every type the library writes, in an order that is not the file's."""
    made: dict[str, torch.Tensor] = {}
    for number, word in enumerate(DTYPES):
        dtype = getattr(torch, word)
        made[f"{number % 3}.{word}"] = torch.arange(1, 7 + number).to(dtype)
    made["b.scalar"] = torch.tensor(3.5)
    made["a.turned"] = torch.arange(6.0).reshape(2, 3).t()
    made["样式"] = torch.zeros(0, 4)
    made["Z"] = torch.ones(2, 2, 1, 1)
    return dict(reversed(made.items()))


def split(data: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return data[: 8 + length], data[8 + length :]


def test_the_body_is_the_librarys_and_so_is_the_header_but_for_the_order_of_metadata(tmp_path: Path):
    made = tensors()
    assert len(made) == 20
    save(tmp_path / "ours.safetensors", made, METADATA)
    save_file({k: v.contiguous() for k, v in made.items()}, tmp_path / "theirs.safetensors", METADATA)
    (header, body), (their_header, their_body) = (
        split((tmp_path / f).read_bytes()) for f in ("ours.safetensors", "theirs.safetensors")
    )
    assert body == their_body and len(header) % 8 == 0
    ours, theirs = json.loads(header[8:]), json.loads(their_header[8:])
    assert ours == theirs and list(ours)[1:] == list(theirs)[1:]
    assert list(ours["__metadata__"]) == sorted(METADATA)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_files_with_one_order_of_metadata_equal_the_librarys(tmp_path: Path, metadata: dict[str, str]):
    made = {k: v.contiguous() for k, v in tensors().items()}
    save(tmp_path / "ours", made, metadata)
    save_file(made, tmp_path / "theirs", metadata or None)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_library_loads_it(tmp_path: Path):
    made = tensors()
    save(tmp_path / "file", made, METADATA)
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == made.keys()
    for name, tensor in made.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        ours, theirs = (t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, loaded[name]))
        assert torch.equal(ours, theirs), name
    with safe_open(tmp_path / "file", "pt") as opened:
        assert opened.metadata() == METADATA


def test_equal_content_gives_equal_bytes_whatever_the_order(tmp_path: Path):
    made = tensors()
    save(tmp_path / "one", made, METADATA)
    save(tmp_path / "two", dict(sorted(made.items())), dict(reversed(METADATA.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    _, body = split((tmp_path / "one").read_bytes())
    assert body_hash(made) == hashlib.sha256(body).hexdigest()


def test_metadata_that_is_no_text_is_our_mistake(tmp_path: Path):
    with pytest.raises(TypeError, match="steps"):
        save(tmp_path / "file", tensors(), {"steps": 3})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.safetensors"
    save(path, {"a": torch.ones(2)}, {})
    before = path.read_bytes()

    def no_space(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(MachineError):
        save(path, {"a": torch.zeros(2)}, {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]


def test_the_header_is_read_without_tensors(tmp_path: Path):
    save(tmp_path / "file", tensors(), METADATA)
    header = read_header(tmp_path / "file")
    assert header.metadata == METADATA and len(header.tensors) == 20
    assert header.tensors["b.scalar"].shape == () and header.tensors["b.scalar"].dtype == "F32"
    assert header.tensors["a.turned"].shape == (3, 2)
    assert {info.dtype for info in header.tensors.values()} == set(DTYPES.values())


def _with_header(text: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + body


BROKEN = {
    "absent": (None, "does not exist"),
    "empty": (b"", "not a safetensors file"),
    "short": (b"\x05\x00", "not a safetensors file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "not a safetensors file"),
    "text": (b"hello, this is a text file", "not a safetensors file"),
    "cut header": (_with_header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')[:30], "cut short"),
    "cut body": (_with_header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"\0" * 9), "cut short"),
    "no json": (_with_header(b'{"a":{"dtype"'), "not a safetensors file"),
    "no offsets": (_with_header(b'{"a":{"dtype":"F32","shape":[4]}}'), "not a safetensors file"),
    "no object": (_with_header(b'{"a":[1,2]}'), "not a safetensors file"),
    "bad shape": (_with_header(b'{"a":{"dtype":"F32","shape":["x"],"data_offsets":[0,0]}}'), "not a safetensors file"),
    "bad metadata": (_with_header(b'{"__metadata__":[1]}'), "not a safetensors file"),
    "not utf-8": (_with_header(b'{"\xff":1}'), "not a safetensors file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_in_words(kind: str, tmp_path: Path):
    data, words = BROKEN[kind]
    path = tmp_path / "broken.safetensors"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BaseModelError) as caught:
        read_header(path)
    assert words in str(caught.value) and str(path) in str(caught.value) and caught.value.exit_code == 2


def test_every_length_of_a_cut_file_is_refused(tmp_path: Path):
    save(tmp_path / "whole", {"a": torch.ones(3), "b": torch.ones(2)}, {"k": "v"})
    data = (tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(BaseModelError):
            read_header(cut)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["lora.pt", "lora.ckpt", "lora.safetensors", "lora.bin"])
def test_pickles_are_refused_whatever_they_are_called(tmp_path: Path, legacy: bool, name: str):
    path = tmp_path / name
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BaseModelError) as caught:
        read_header(path)
    assert "pickle" in str(caught.value)


def test_a_header_length_that_looks_like_a_pickle_is_none(tmp_path: Path):
    save(tmp_path / "probe", {"a": torch.ones(1)}, {"k": ""})
    bare = len(split((tmp_path / "probe").read_bytes())[0]) - 8
    path = tmp_path / "file.safetensors"
    save(path, {"a": torch.ones(1)}, {"k": "x" * (0x0280 - bare)})
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(path).tensors) == ["a"]
