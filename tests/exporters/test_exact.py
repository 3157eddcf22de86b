"""Copies in other layouts and back again: every bit of every tensor, its number format, and what the header tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import messages, registry
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.compare import compare
from lora_scripts.adapters.safetensors_file import read_header, save
from lora_scripts.exporters import diffusers, kohya, peft
from tests.adapters.two_encoders import META, SOME, adapter

Tensors = Mapping[str, torch.Tensor]


def same(first: Path, second: Path) -> bool:
    """Compare every tensor's name, number format, shape and bytes."""
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(
        one.dtype == theirs[name].dtype and one.shape == theirs[name].shape and bits(one) == bits(theirs[name])
        for name, one in ours.items()
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def source(folder: Path, family: str, kind: str, *, dtype: torch.dtype, alpha_dtype: torch.dtype, mixed: bool) -> Path:
    """Write a kohya file as other tools do: any number format, and one alpha for each module where `mixed`."""
    made = adapter(family, kind, SOME, rank=3, alpha=3.7)
    path = folder / "source.safetensors"
    kohya.export(made, path)
    tensors, number = load_file(path), 0
    for name, tensor in tensors.items():
        if name.endswith(".alpha"):
            number += 1
            value = 1.3 + 0.7 * (number % 4) if mixed and float(tensor) != 1 else float(tensor)
            tensors[name] = torch.tensor(value).to(dtype).to(alpha_dtype)
        else:
            tensors[name] = tensor.to(dtype)
    save(path, tensors, read_header(path).metadata)
    return path


WAYS = {"diffusers": (diffusers, "pytorch_lora_weights.safetensors"), "peft": (peft, "copy-peft")}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("mixed", [False, True], ids=["one alpha", "several alphas"])
@pytest.mark.parametrize(
    ("dtype", "alpha_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", WAYS)
def test_there_and_back_gives_the_same_bytes(way, dtype, alpha_dtype, mixed, family, tmp_path: Path):
    first = source(tmp_path, family, "lora", dtype=dtype, alpha_dtype=alpha_dtype, mixed=mixed)
    exporter, name = WAYS[way]
    exporter.export_exact(files.load(first, dtype=None), tmp_path / name)
    back = files.load(tmp_path / name, dtype=None)
    report = kohya.export_exact(back, tmp_path / "back.safetensors")
    assert same(tmp_path / "back.safetensors", first)
    # Whatever is told of the training stays, and the number format of alphas is not made up into a fact of it.
    assert read_header(tmp_path / "back.safetensors").metadata == {
        **read_header(first).metadata,
        **{key: value for key, value in read_header(tmp_path / "back.safetensors").metadata.items() if "hash" in key},
        **({"ss_network_alpha": "Dynamic"} if mixed else {}),
        **network(tmp_path / "back.safetensors"),
    }
    assert [note.code for note in report.notes] == (["adapter.mixed_alphas"] if mixed else [])
    compare(kohya.read_back(tmp_path / "back.safetensors", back), back, 1e-6)


def network(path: Path) -> dict[str, str]:
    """Return what the header says of alphas, which the number format may have rounded."""
    return {key: value for key, value in read_header(path).metadata.items() if "alpha" in key or "args" in key}


@pytest.mark.parametrize(("kind", "way"), [("dora", "diffusers"), ("dora", "peft"), ("loha", "peft"), ("lokr", "peft")])
def test_other_kinds_there_and_back(kind: str, way: str, tmp_path: Path):
    first = source(tmp_path, "sdxl", kind, dtype=torch.float32, alpha_dtype=torch.float32, mixed=True)
    exporter, name = WAYS[way]
    exporter.export_exact(files.load(first, dtype=None), tmp_path / name)
    kohya.export_exact(files.load(tmp_path / name, dtype=None), tmp_path / "back.safetensors")
    assert same(tmp_path / "back.safetensors", first)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_a_scale_of_a_power_of_two_loses_nothing_when_baked(scale: float, tmp_path: Path):
    made = adapter("sdxl", "lora", SOME, rank=4, alpha=4 * scale)
    path = tmp_path / "file.safetensors"
    diffusers.export(made, path)
    for component, pairs in files.load(path).pairs.items():
        for module, pair in pairs.items():
            assert torch.equal(pair.up / scale, made.pairs[component][module].up) and pair.scale == 1


@pytest.mark.parametrize("exporter", [kohya, diffusers, peft])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_stays_as_it_is(exporter: Any, dtype: torch.dtype, tmp_path: Path):
    made = adapter("sd", "lora", SOME, rank=4, alpha=4.0)
    pairs = {
        component: {path: replace(pair, down=pair.down.to(dtype), up=pair.up.to(dtype)) for path, pair in part.items()}
        for component, part in made.pairs.items()
    }
    path = tmp_path / exporter.file_name(made.meta)
    exporter.export(Adapter(pairs, made.meta), path)
    files_written = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    kept = torch.float32 if dtype == torch.float64 else dtype
    assert {tensor.dtype for file in files_written for tensor in load_file(file).values()} == {kept}
    assert {pair.up.dtype for part in files.load(path).pairs.values() for pair in part.values()} == {torch.float32}
    loaded = files.load(path, dtype=None)
    assert {pair.up.dtype for part in loaded.pairs.values() for pair in part.values()} == {kept}


@pytest.mark.parametrize(("kind", "codes"), [("lora", []), ("dora", ["adapter.dora_readers"]), ("loha", [])])
def test_who_reads_a_kohya_file_otherwise_is_said(kind: str, codes: list[str], tmp_path: Path):
    made = adapter("sdxl", kind, {"unet": r"mid_block\.attentions.*attn1\.to_q"})
    report = kohya.export(made, tmp_path / "file.safetensors")
    assert [note.code for note in report.notes] == codes
    for note in report.notes:
        sentence = messages.text(note.code, **note.params)
        assert "diffusers" in sentence and "WebUI" in sentence and "file.safetensors" in sentence


LYCORIS = {
    "lora": ("networks.lora", {}),
    "dora": ("lycoris.kohya", {"algo": "locon", "dora_wd": "True"}),
    "loha": ("lycoris.kohya", {"algo": "loha"}),
    "lokr": ("lycoris.kohya", {"algo": "lokr"}),
}


@pytest.mark.parametrize("kind", registry.names("adapters"))
def test_names_and_shapes_are_those_of_lycoris(kind: str, tmp_path: Path):
    assert LYCORIS.keys() == {*registry.names("adapters")}
    made = adapter("sdxl", kind, {"unet": r"mid_block\.(attentions.*attn1\.to_q|resnets\.0\.conv1)"}, rank=2, alpha=3.0)
    kohya.export(made, tmp_path / "file.safetensors")
    header = read_header(tmp_path / "file.safetensors")
    linear = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    kernel = "lora_unet_middle_block_0_in_layers_2"
    shapes = {name: info.shape for name, info in header.tensors.items()}
    own = {
        "lora": {},
        "dora": {f"{linear}.dora_scale": (64, 1), f"{kernel}.dora_scale": (64, 1, 1, 1)},
        "loha": {f"{linear}.hada_w1_a": (64, 2), f"{kernel}.hada_w2_b": (2, 576), f"{kernel}.alpha": ()},
        "lokr": {f"{linear}.lokr_w1": (8, 8), f"{kernel}.lokr_w2_b": (2, 72), f"{kernel}.alpha": ()},
    }[kind]
    assert own.items() <= shapes.items()
    module, args = LYCORIS[kind]
    assert header.metadata["ss_network_module"] == module
    found = json.loads(header.metadata.get("ss_network_args", "{}"))
    assert args.items() <= found.items() and META.kind == "lora"
