"""The PEFT folder of a language model: what peft itself makes of it, and what it says to other programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import messages
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.adapters.compare import compare
from lora_scripts.adapters.safetensors_file import read_header
from lora_scripts.errors import NumericsError
from lora_scripts.exporters import peft
from tests.adapters import language

COMPONENT = "language_model"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save_base(tmp_path_factory.mktemp("bases") / "tiny-lm")


def write(folder: Path, made: Adapter) -> Path:
    path = folder / peft.file_name(made.meta)
    assert path.name == "adapter_model.safetensors"
    peft.export(made, path)
    return path


def config(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name("adapter_config.json").read_text())


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (4, 9.5), (3, 7.0)])
@pytest.mark.parametrize(
    "targets", [language.EVERYWHERE, language.ATTENTION, (r".*layers\.1\.mlp.*",), (r".*layers\.0\..*",)]
)
def test_peft_gives_what_the_trained_model_gives(rank, alpha, targets, base: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = language.adapter(targets, rank=rank, alpha=alpha, of=language.meta(base))
    write(tmp_path, made)
    trained = language.model()
    language.put(trained, targets, rank=rank, alpha=alpha).load(made)
    plain = AutoModelForCausalLM.from_pretrained(config(tmp_path / "x")["base_model_name_or_path"]).eval()
    before = language.logits(plain)
    loaded = PeftModel.from_pretrained(plain, tmp_path).eval()
    assert (language.logits(loaded) - language.logits(trained)).abs().max() < 1e-5
    assert (language.logits(loaded) - before).abs().max() > 1e-3
    with_pairs = {name for name, _ in loaded.named_parameters() if "lora_A" in name}
    assert len(with_pairs) == len(made)


def test_the_config_is_this_and_nothing_else(base: Path, tmp_path: Path):
    path = write(tmp_path, language.adapter(language.ATTENTION, of=language.meta(base)))
    assert config(path) == {
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    text = path.with_name("adapter_config.json").read_text()
    assert text.endswith("}\n") and text.index('"bias"') < text.index('"r"') and '"lora_alpha": 8,' in text
    header = read_header(path)
    assert header.metadata == {"format": "pt", "base_hash": "cd" * 32, "family": "causal_lm", "name": "tiny drafts"}
    assert {info.dtype for info in header.tensors.values()} == {"F32"}
    assert sorted(header.tensors) == [
        f"base_model.model.model.layers.{layer}.self_attn.{word}_proj.lora_{half}.weight"
        for layer in (0, 1)
        for word in "qv"
        for half in "AB"
    ]


def test_what_is_written_is_read_with_its_base(base: Path, tmp_path: Path):
    made = language.adapter(alpha=9.5, of=language.meta(base))
    path = write(tmp_path, made)
    assert files.base_of(tmp_path) == (str(base), "cd" * 32)
    loaded = files.load(tmp_path)
    assert loaded.meta == replace(made.meta, base_name="", variant="")
    compare(loaded, made)
    again = tmp_path / "again"
    again.mkdir()
    write(again, loaded)
    assert (again / path.name).read_bytes() == path.read_bytes()
    assert config(again / path.name) == config(path)


def test_equal_whole_alphas_keep_every_bit(tmp_path: Path):
    made = language.adapter(rank=3, alpha=7.0)
    tensors = load_file(write(tmp_path, made))
    for module, pair in made.pairs[COMPONENT].items():
        assert torch.equal(tensors[f"base_model.model.{module}.lora_A.weight"], pair.down)
        assert torch.equal(tensors[f"base_model.model.{module}.lora_B.weight"], pair.up)


@pytest.mark.parametrize("alpha", [9.5, 0.25, 0.0, -2.0, 1e10])
def test_alpha_is_a_whole_number_that_every_reader_takes(alpha: float, tmp_path: Path):
    made = language.adapter(alpha=4.0)
    pairs = {path: replace(pair, alpha=alpha) for path, pair in made.pairs[COMPONENT].items()}
    made = Adapter({COMPONENT: pairs}, made.meta)
    path = write(tmp_path, made)
    assert type(config(path)["lora_alpha"]) is int and 0 < config(path)["lora_alpha"] < 2**31
    compare(peft.read_back(path, made), made)


def test_differing_ranks_and_scales_become_one(base: Path, tmp_path: Path):
    from peft import PeftModel

    sources = [language.adapter(rank=rank, alpha=alpha) for rank, alpha in ((2, 3.0), (8, 20.0), (5, 5.0))]
    paths = sorted(sources[0].pairs[COMPONENT])
    mixed = {path: sources[i % 3].pairs[COMPONENT][path] for i, path in enumerate(paths)}
    made = Adapter({COMPONENT: mixed}, language.meta(base))
    path = write(tmp_path, made)
    assert config(path)["r"] == 8 and "rank_pattern" not in config(path) and "alpha_pattern" not in config(path)
    assert {t.shape[0] for name, t in load_file(path).items() if "lora_A" in name} == {8}
    compare(peft.read_back(path, made), made)
    live = language.model()
    expected = language.model()
    named = dict(expected.named_modules())
    with torch.no_grad():
        for module, pair in mixed.items():
            named[module].weight += pair.delta()
    loaded = PeftModel.from_pretrained(live, tmp_path).eval()
    assert (language.logits(loaded) - language.logits(expected)).abs().max() < 1e-5


LAST, FIRST = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("chosen", "every", "expected"),
    [
        ([FIRST, LAST], [FIRST, LAST, "lm_head"], ["up_proj"]),
        ([LAST], [FIRST, LAST, "lm_head"], [LAST]),
        ([LAST, FIRST], [], [FIRST, LAST]),
        ([LAST, FIRST], [LAST, "lm_head"], [FIRST, LAST]),
        (["lm_head", FIRST], [FIRST, "lm_head", "model.layers.0.mlp.down_proj"], ["lm_head", "up_proj"]),
    ],
)
def test_target_modules_choose_exactly_what_was_trained(chosen, every, expected):
    assert peft.target_modules(chosen, every) == expected


@pytest.mark.parametrize("is_known", [True, False], ids=["base here", "base elsewhere"])
def test_targets_choose_no_layer_that_was_not_trained(is_known: bool, base: Path, tmp_path: Path):
    from peft import PeftModel

    made = language.adapter((r".*layers\.1\.mlp.*",), of=language.meta(base if is_known else Path("not/here")))
    path = write(tmp_path, made)
    assert len(config(path)["target_modules"]) == 3 and all("." in name for name in config(path)["target_modules"])
    loaded = PeftModel.from_pretrained(language.model(), tmp_path)
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == len(made) == 3


def change(path: Path, do: str) -> None:
    tensors = load_file(path)
    name = f"base_model.model.{language.MODULE}.lora_B.weight"
    values = config(path)
    if do == "value":
        tensors[name][0] *= 1.01
    elif do == "prefix":
        tensors = {key.removeprefix("base_model."): tensor for key, tensor in tensors.items()}
    elif do == "missing":
        del tensors[name]
    elif do == "left over":
        tensors["base_model.model.model.layers.7.mlp.up_proj.lora_B.weight"] = torch.ones(8, 4)
    elif do == "shape":
        tensors[name] = tensors[name][:-1].clone()
    elif do == "alpha":
        values["lora_alpha"] += 1
    elif do == "stabilised":
        values["use_rslora"] = True
    elif do == "targets":
        values["target_modules"] = ["q_proj"]
    elif do == "rank":
        values["r"] = 8
    save_file(tensors, path, {"format": "pt"})
    text = "{" if do == "broken" else json.dumps(values)
    path.with_name("adapter_config.json").write_text(text)


CHANGES = ("value", "prefix", "missing", "left over", "shape", "alpha", "stabilised", "targets", "rank", "broken")


@pytest.mark.parametrize("do", CHANGES)
def test_reading_back_sees_a_folder_that_differs(do: str, tmp_path: Path):
    made = language.adapter()
    path = write(tmp_path, made)
    change(path, "nothing")
    compare(peft.read_back(path, made), made)
    change(path, do)
    with pytest.raises(NumericsError) as caught:
        compare(peft.read_back(path, made), made)
    assert "\n" not in str(caught.value)


def test_a_large_model_costs_nothing_to_compare_with(tmp_path: Path):
    """Two layers of 40 GB each: only the pairs are in memory."""
    pairs = {
        f"model.layers.{n}.mlp.up_proj": LoraPair(torch.ones(1, 100_000) * (n + 1), torch.ones(100_000, 1), 1.0)
        for n in range(2)
    }
    made = Adapter({COMPONENT: pairs}, language.meta())
    path = write(tmp_path, made)
    read = peft.read_back(path, made)
    assert torch.equal(read.pairs[COMPONENT]["model.layers.1.mlp.up_proj"].down, torch.full((1, 100_000), 2.0))


ALL = [f"model.layers.0.{word}" for word in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")]


@pytest.mark.parametrize(
    ("variant", "rank", "modules", "expected"),
    [
        ("llama", 8, ALL, []),
        ("mistral", 16, ALL, []),
        ("gemma2", 17, ALL, ["--max-lora-rank 32"]),
        ("llama", 256, ALL, ["--max-lora-rank 256"]),
        ("llama", 1024, ALL, ["at most 512"]),
        ("qwen2", 8, ALL, ["not for qwen2"]),
        ("phi3", 64, ["model.layers.0.self_attn.qkv_proj"], ["--max-lora-rank 64", "not for phi3"]),
        ("llama", 8, [*ALL, "lm_head"], ["lm_head of a PEFT folder", "no LoRA on lm_head"]),
        ("qwen3", 8, ["lm_head"], ["not for qwen3", "no LoRA on lm_head"]),
    ],
)
def test_what_other_programs_refuse_is_told(variant, rank, modules, expected, monkeypatch: pytest.MonkeyPatch):
    notes = peft.warnings(language.meta(variant=variant), rank, modules)
    sentences = [messages.text(note.code, **note.params) for note in notes]
    assert len(sentences) == len(expected)
    assert all(words in sentence for words, sentence in zip(expected, sentences, strict=True)), sentences
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh_CN")
    assert all(messages.text(note.code, **note.params) for note in notes)
