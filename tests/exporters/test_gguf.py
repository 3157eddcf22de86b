"""The GGUF adapter: llama.cpp's names and order of rows, every bit back, and what has no place in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from lora_scripts import messages
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.compare import compare
from lora_scripts.errors import BaseModelError, NumericsError
from lora_scripts.exporters import gguf
from tests.adapters import language

COMPONENT = "language_model"
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3")
PHI3 = (r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)",)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: language.save_base(folder / kind, kind) for kind in KINDS}


def made_for(bases: dict[str, Path], kind: str, **values: Any) -> Adapter:
    targets = PHI3 if kind == "phi3" else language.EVERYWHERE
    return language.adapter(targets, kind=kind, of=language.meta(bases[kind], variant=kind), **values)


def fields(path: Path) -> tuple[dict[str, Any], dict[str, numpy.ndarray]]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    said = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return said, {tensor.name: numpy.array(tensor.data) for tensor in reader.tensors}


@pytest.mark.parametrize(
    ("kind", "architecture", "names"),
    [
        ("llama", "llama", "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down"),
        ("mistral", "llama", "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down"),
        ("qwen2", "qwen2", "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down"),
        ("qwen3", "qwen3", "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down"),
        ("gemma2", "gemma2", "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down"),
        ("phi3", "phi3", "attn_qkv attn_output ffn_up ffn_down"),
    ],
)
def test_every_base_has_llamacpps_names_and_every_bit_comes_back(
    kind: str, architecture: str, names: str, bases: dict[str, Path], tmp_path: Path
):
    made = made_for(bases, kind, rank=3, alpha=7.0)
    path = tmp_path / gguf.file_name(made.meta)
    report = gguf.export(made, path)
    said, tensors = fields(path)
    assert said == {
        "general.architecture": architecture,
        "general.type": "adapter",
        "general.name": "tiny drafts",
        "adapter.type": "lora",
        "adapter.lora.alpha": 7.0,
    }
    wanted = {f"blk.{n}.{name}.weight.lora_{half}" for n in (0, 1) for name in names.split() for half in "ab"}
    assert tensors.keys() == wanted and report.tensors == len(wanted)
    assert {tensor.dtype for tensor in tensors.values()} == {numpy.dtype(numpy.float32)}
    read = gguf.read_back(path, made)
    compare(read, made, tolerance=0.0)
    for module, pair in made.pairs[COMPONENT].items():
        assert torch.equal(read.pairs[COMPONENT][module].up, pair.up)
        assert torch.equal(read.pairs[COMPONENT][module].down, pair.down)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_rows_of_q_and_k_are_in_the_order_of_the_base_file(kind: str, bases: dict[str, Path], tmp_path: Path):
    """transformers' own reader of GGUF files, which undoes the order of rows, finds the adapter's update again."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    made = made_for(bases, kind, rank=3, alpha=3.0)
    gguf.export(made, tmp_path / "file.gguf")
    _, tensors = fields(tmp_path / "file.gguf")
    processor = LlamaTensorProcessor(config={"num_attention_heads": 4, "num_key_value_heads": 2})
    moved = 0
    for layer in (0, 1):
        for word, name in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
            pair = made.pairs[COMPONENT][f"model.layers.{layer}.self_attn.{word}_proj"]
            low, high = (tensors[f"blk.{layer}.{name}.weight.lora_{half}"] for half in "ab")
            assert numpy.array_equal(low, pair.down.numpy())
            found = processor.process(high @ low, f"blk.{layer}.{name}.weight").weights
            assert numpy.allclose(found, pair.delta().numpy(), atol=1e-6)
            moved += not numpy.array_equal(high, pair.up.numpy())
    assert moved == 4


def test_a_base_without_that_order_keeps_its_rows(bases: dict[str, Path], tmp_path: Path):
    made = made_for(bases, "qwen2", alpha=4.0)
    gguf.export(made, tmp_path / "file.gguf")
    _, tensors = fields(tmp_path / "file.gguf")
    pair = made.pairs[COMPONENT]["model.layers.1.self_attn.q_proj"]
    assert numpy.array_equal(tensors["blk.1.attn_q.weight.lora_b"], pair.up.numpy())


@pytest.mark.parametrize(("heads", "rows"), [(1, 2), (4, 32), (2, 16), (9, 576), (3, 192)])
def test_weaving_is_undone(heads: int, rows: int):
    numbers = torch.arange(rows * 3.0).view(rows, 3)
    woven = gguf.weave(numbers, heads)
    assert torch.equal(gguf.unweave(woven, heads), numbers)
    half = rows // heads // 2
    assert woven[:, 0].div(3).int().tolist()[: 2 * half] == [n for i in range(half) for n in (i, i + half)]


def test_differing_ranks_and_scales_become_one(bases: dict[str, Path], tmp_path: Path):
    small, large = made_for(bases, "llama", rank=2, alpha=3.0), made_for(bases, "llama", rank=8, alpha=20.5)
    pairs = {
        path: (small, large)[i % 2].pairs[COMPONENT][path] for i, path in enumerate(sorted(small.pairs[COMPONENT]))
    }
    made = Adapter({COMPONENT: pairs}, small.meta)
    gguf.export(made, tmp_path / "file.gguf")
    said, tensors = fields(tmp_path / "file.gguf")
    # llama.cpp scales by alpha over the width of lora_b, module by module.
    assert {tensor.shape[1] for name, tensor in tensors.items() if name.endswith("lora_b")} == {8}
    assert said["adapter.lora.alpha"] == 12.0
    compare(gguf.read_back(tmp_path / "file.gguf", made), made)


def test_an_alpha_of_zero_is_not_taken_for_one(bases: dict[str, Path], tmp_path: Path):
    made = made_for(bases, "llama")
    pairs = {path: replace(pair, alpha=0.0) for path, pair in made.pairs[COMPONENT].items()}
    made = Adapter({COMPONENT: pairs}, made.meta)
    gguf.export(made, tmp_path / "file.gguf")
    said, tensors = fields(tmp_path / "file.gguf")
    assert said["adapter.lora.alpha"] > 0
    assert not any(tensor.any() for name, tensor in tensors.items() if name.endswith("lora_b"))


def refusal(meta: AdapterMeta) -> str:
    note = gguf.refuses(meta)
    return messages.text(note.code, **note.params) if note else ""


def test_what_cannot_be_written_is_refused_before_training(bases: dict[str, Path], tmp_path: Path):
    assert [refusal(language.meta(bases[kind], variant=kind)) for kind in KINDS] == [""] * 6
    # The base's config tells where the adapter does not.
    assert refusal(language.meta(bases["phi3"], variant="")) == ""
    # Rows of these keep their order, so the base need not be here.
    assert refusal(language.meta(variant="qwen3")) == ""
    assert "qwen3" in refusal(language.meta(variant="falcon")) and "falcon" in refusal(language.meta(variant="falcon"))
    for meta in (language.meta(), language.meta(tmp_path), language.meta(variant="")):
        assert "--base" in refusal(meta)
    broken = tmp_path / "config.json"
    broken.write_text("{}")
    assert "--base" in refusal(language.meta(tmp_path))
    broken.write_text("{")
    with pytest.raises(BaseModelError, match="not readable"):
        gguf.refuses(language.meta(tmp_path))


@pytest.mark.parametrize("name", ["a/b", "a\\b", "a:b", "a*", "", " a", "a.", "x" * 191])
def test_names_that_are_no_file_names_are_refused(name: str):
    assert f'"{name}"' in refusal(replace(language.meta(variant="qwen2"), name=name))


def test_modules_without_a_place_are_named(bases: dict[str, Path], tmp_path: Path):
    meta = language.meta(bases["llama"])
    pair = made_for(bases, "llama").pairs[COMPONENT][language.MODULE]
    for path in ("lm_head", "model.layers.0.self_attn.qkv_proj", "model.visual.blocks.0.attn.qkv"):
        made = Adapter({COMPONENT: {language.MODULE: pair, path: pair}}, meta)
        with pytest.raises(BaseModelError, match=rf"1 of the LoRA's modules: {re.escape(path)};"):
            gguf.export(made, tmp_path / "file.gguf")
    both = {f"model.layers.0.mlp.{word}_proj": pair for word in ("up", "gate_up")}
    with pytest.raises(BaseModelError, match="2 of the LoRA's modules"):
        gguf.export(Adapter({COMPONENT: both}, meta), tmp_path / "file.gguf")
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, do: str) -> None:
    """Write the file once more by the package alone, with one thing changed."""
    from gguf import GGUFWriter

    said, tensors = fields(path)
    if do == "value":
        tensors["blk.1.attn_k.weight.lora_b"][3, 1] = numpy.nextafter(
            tensors["blk.1.attn_k.weight.lora_b"][3, 1], numpy.float32(9)
        )
    elif do == "order of rows":
        rows = torch.from_numpy(tensors["blk.1.attn_k.weight.lora_b"])
        tensors["blk.1.attn_k.weight.lora_b"] = gguf.unweave(rows, 2).contiguous().numpy()
    elif do == "missing":
        del tensors["blk.1.attn_k.weight.lora_b"]
    elif do == "turned":
        tensors["blk.1.attn_k.weight.lora_a"] = tensors["blk.1.attn_k.weight.lora_a"].T.copy()
    elif do == "left over":
        tensors |= {f"blk.77.attn_k.weight.lora_{half}": tensors[f"blk.1.attn_k.weight.lora_{half}"] for half in "ab"}
    writer = GGUFWriter(path, "qwen2" if do == "architecture" else "llama")
    writer.add_type("model" if do == "type" else "adapter")
    writer.add_string("adapter.type", "control_vector" if do == "kind" else "lora")
    if do != "no alpha":
        writer.add_float32("adapter.lora.alpha", said["adapter.lora.alpha"] + (do == "alpha"))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if do == "cut":
        path.write_bytes(path.read_bytes()[:-4096])
    elif do == "not GGUF":
        path.write_bytes(b"x" * 5000)


CHANGES = (
    "value",
    "order of rows",
    "turned",
    "missing",
    "left over",
    "architecture",
    "type",
    "kind",
    "no alpha",
    "alpha",
)


@pytest.mark.parametrize("do", [*CHANGES, "cut", "not GGUF"])
def test_reading_back_sees_a_file_that_differs(do: str, bases: dict[str, Path], tmp_path: Path):
    made = made_for(bases, "llama")
    path = tmp_path / "file.gguf"
    gguf.export(made, path)
    rewrite(path, "nothing")
    compare(gguf.read_back(path, made), made, tolerance=0.0)
    rewrite(path, do)
    with pytest.raises(NumericsError) as caught:
        compare(gguf.read_back(path, made), made, tolerance=0.0)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_told_from_a_model(bases: dict[str, Path], tmp_path: Path):
    path = tmp_path / "file.gguf"
    gguf.export(made_for(bases, "llama"), path)
    assert gguf.is_adapter(path)
    rewrite(path, "type")
    assert not gguf.is_adapter(path)
    path.write_bytes(b"anything")
    assert not gguf.is_adapter(path)
