"""The cache: keyed by content, atomic, and able to notice a torn entry."""

from __future__ import annotations

import pytest
import torch

from lora_scripts.data.cache import Cache, entry_key


def test_an_entry_comes_back_equal(tmp_path):
    cache = Cache(tmp_path / "c")
    tensors = {"mean": torch.randn(3, 4), "deviation": torch.rand(3, 4)}
    cache.put("ab12", tensors)
    for reader in (cache, Cache(tmp_path / "c")):
        assert reader.has("ab12")
        assert all(torch.equal(reader.get("ab12")[name], tensor) for name, tensor in tensors.items())


def test_a_torn_entry_is_absent(tmp_path):
    Cache(tmp_path).put("ab12", {"x": torch.randn(100)})
    path = Cache(tmp_path).path("ab12")
    whole = path.read_bytes()
    for size in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert not Cache(tmp_path).has("ab12")
        with pytest.raises(KeyError):
            Cache(tmp_path).get("ab12")
    assert not Cache(tmp_path).has("cd34")


def test_the_key_depends_on_each_part():
    keys = {entry_key("latents", "e", "c"), entry_key("text", "e", "c"), entry_key("latents", "f", "c")}
    assert len(keys | {entry_key("latents", "e", "d"), entry_key("latents", "ec", "")}) == 5


def test_memory_is_bounded(tmp_path):
    cache = Cache(tmp_path, memory_bytes=1000)
    for i in range(20):
        cache.put(f"{i:02d}", {"x": torch.zeros(50)})
    assert cache._held <= 1000
    assert torch.equal(cache.get("00")["x"], torch.zeros(50))


def test_no_temporary_file_stays(tmp_path):
    Cache(tmp_path).put("ab12", {"x": torch.zeros(5)})
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["ab12.safetensors"]
