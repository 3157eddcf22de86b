"""The verb's work: which base, which place, what is told, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import exporting, merging, messages
from lora_scripts.adapters import base_hash, files
from lora_scripts.adapters.adapter import AdapterMeta
from lora_scripts.adapters.compare import compare
from lora_scripts.errors import BaseModelError, ConfigError
from lora_scripts.exporters import gguf, peft
from tests.adapters import language


class Told(list[str]):
    """The sentences that were told."""

    def __call__(self, code: str, **params: object) -> None:
        self.append(messages.text(code, **params))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return language.save_base(tmp_path / "base", dtype=torch.bfloat16)


def trained(folder: Path, base: Path, **values: Any) -> Path:
    """Write an adapter as a run of ours does."""
    meta = language.meta(base, base_hash=base_hash.hash_of_folder(base))
    made = language.adapter(of=replace(meta, **values.pop("meta", {})), **values)
    folder.mkdir()
    peft.export(made, folder / peft.file_name(made.meta))
    return folder


def export(adapter: Path, to: str, **values: Any) -> tuple[Path, Told]:
    told = Told()
    return exporting.export(exporting.Order(adapter, to, **values), told), told


def test_each_target_is_written_beside_the_adapter_and_told(base: Path, tmp_path: Path):
    lora = trained(tmp_path / "lora", base)
    before = {file.name: file.read_bytes() for file in lora.iterdir()}
    path, told = export(lora, "merged")
    assert path == lora / "merged" and merging.is_ours(path) and len(told) == 4
    assert "with the weights that tiny drafts was trained on" in told[0]
    assert f"{path}: the merged model in bfloat16; 14 modules" in told[-1] and "21 tensors" in told[-1]
    path, told = export(lora, "gguf")
    assert path == lora / "tiny drafts.gguf" and len(told) == 3
    assert f"{path}: 28 tensors for 14 modules, loaded again with gguf" in told[1] and "--lora" in told[2]
    path, told = export(lora, "peft")
    assert path == lora / "peft" and "28 tensors for 14 modules, loaded again with peft" in told[1] and len(told) == 2
    for name, data in before.items():
        assert (lora / name).read_bytes() == data == (lora / "peft" / name).read_bytes()
    assert {file.name for file in lora.iterdir()} == {*before, "merged", "peft", "tiny drafts.gguf"}
    # Once more: what this verb wrote may be replaced.
    for to in exporting.TARGETS:
        export(lora, to)


def test_what_other_programs_refuse_is_told(base: Path, tmp_path: Path):
    _, told = export(trained(tmp_path / "lora", base, rank=24), "peft")
    assert "--max-lora-rank 32" in told[-1]


def test_an_adapter_of_peft_with_scales_of_its_own_is_made_plain(base: Path, tmp_path: Path):
    from tests.adapters.test_language import by_peft

    lora, _ = by_peft(tmp_path / "theirs", use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3})
    path, told = export(lora, "peft", base=str(base), output=tmp_path / "plain")
    assert "nobody can check" in told[0]
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["r"] == 4 and not config["use_rslora"] and config["base_model_name_or_path"] == str(base.resolve())
    compare(files.load(path), files.load(lora))
    path, _ = export(lora, "gguf", base=str(base))
    meta = AdapterMeta("causal_lm", "theirs", base_reference=str(base))
    assert path.name == "theirs.gguf"
    compare(gguf.read_back(path, replace(files.load(lora), meta=meta)), files.load(lora))


def test_another_place_and_another_format(base: Path, tmp_path: Path):
    lora = trained(tmp_path / "lora", base)
    path, _ = export(lora, "merged", output=tmp_path / "a" / "b", dtype="float32")
    assert path == tmp_path / "a" / "b"
    assert {t.dtype for t in load_file(path / "model.safetensors").values()} == {torch.float32}
    (tmp_path / "empty").mkdir()
    assert export(lora, "merged", output=tmp_path / "empty")[0] == tmp_path / "empty"
    assert export(lora, "gguf", output=tmp_path / "x" / "y.gguf")[0] == tmp_path / "x" / "y.gguf"
    assert export(lora, "gguf", output=tmp_path / "x")[0] == tmp_path / "x" / "tiny drafts.gguf"
    assert export(lora / "adapter_model.safetensors", "peft")[0] == lora / "peft"
    for to in ("gguf", "peft"):
        with pytest.raises(ConfigError, match="--dtype"):
            export(lora, to, dtype="bf16")
    with pytest.raises(ConfigError, match=r"\.gguf"):
        export(lora, "gguf", output=tmp_path / "model.bin")


def test_the_base_may_have_moved(base: Path, tmp_path: Path):
    lora = trained(tmp_path / "lora", base)
    moved = base.rename(tmp_path / "moved")
    for to in ("merged", "gguf"):
        with pytest.raises((BaseModelError, ConfigError), match="--base"):
            export(lora, to)
    with pytest.raises(BaseModelError):
        export(lora, "merged", base=str(tmp_path / "absent"))
    with pytest.raises(BaseModelError, match=r"config\.json"):
        export(lora, "merged", base=str(lora))
    path, told = export(lora, "merged", base=str(moved))
    assert merging.is_ours(path) and str(moved) in told[0]
    # The pairs alone need no base.
    assert json.loads((export(lora, "peft")[0] / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        base
    )


@pytest.mark.parametrize("to", exporting.TARGETS)
def test_another_base_is_refused(to: str, base: Path, tmp_path: Path):
    lora = trained(tmp_path / "lora", base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match="holds other weights"):
        export(lora, to)
    assert len(list(lora.iterdir())) == 2


def test_nothing_that_is_not_ours_is_overwritten(base: Path, tmp_path: Path):
    lora = trained(tmp_path / "lora", base)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("five years")
    (tmp_path / "file").write_text("x")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF and ninety megabytes")
    for to, place in (
        *((to, place) for to in ("merged", "peft") for place in (taken, tmp_path / "file", lora.parent)),
        ("merged", lora),
        ("gguf", model),
    ):
        with pytest.raises(ConfigError, match="has not written"):
            export(lora, to, output=place)
    with pytest.raises(ConfigError, match="base itself"):
        export(lora, "merged", output=base)
    assert (taken / "thesis.txt").read_text() == "five years" and model.read_bytes().startswith(b"GGUF and")
    # A merged folder is a base for the next adapter; it is not replaced by what is made from it.
    merged, _ = export(lora, "merged")
    next_one = trained(tmp_path / "next", merged)
    with pytest.raises(ConfigError, match="base itself"):
        export(next_one, "merged", output=merged)


def test_loras_of_pictures_are_refused(tmp_path: Path):
    from lora_scripts.exporters import kohya
    from tests.adapters import networks

    kohya.export(networks.adapter(), tmp_path / "style.safetensors")
    with pytest.raises(ConfigError, match="LoRA for pictures"):
        export(tmp_path / "style.safetensors", "merged")


def test_a_base_that_llamacpp_holds_in_an_unknown_way_is_refused(tmp_path: Path):
    base = language.save_base(tmp_path / "base", "stablelm")
    lora = trained(tmp_path / "lora", base, kind="stablelm")
    with pytest.raises(ConfigError, match="stablelm"):
        export(lora, "gguf")
    assert merging.is_ours(export(lora, "merged")[0])
