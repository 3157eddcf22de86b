"""A merged model: equal to peft's own merge, in the base's number format, with everything a folder needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import merging
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.errors import BaseModelError, LoraScriptsError, MachineError, NumericsError
from lora_scripts.exporters import peft
from tests.adapters import language
from tests.exporters.test_gguf import PHI3

COMPONENT = "language_model"


def silent(code: str, **params: object) -> None:
    """Take what is told and say nothing."""


def saved(folder: Path, made: Adapter) -> tuple[Adapter, Path]:
    """Write the adapter as a run does and read it again."""
    folder.mkdir()
    peft.export(made, folder / peft.file_name(made.meta))
    return files.load(folder), folder


def by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Return the weights that peft's merge_and_unload gives in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()


def reload(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_folder_is_pefts_merge_in_the_bases_own_format(kind: str, dtype: torch.dtype, tmp_path: Path):
    base = language.save_base(tmp_path / "base", kind, dtype)
    targets = PHI3 if kind == "phi3" else language.EVERYWHERE
    adapter, source = saved(tmp_path / "lora", language.adapter(targets, kind=kind, alpha=9.5))
    made = merging.merge(adapter, source, base, tmp_path / "merged", silent)
    name = str(dtype).removeprefix("torch.")
    assert made == merging.Merged(tmp_path / "merged", len(reload(base).state_dict()), len(adapter), name)
    wanted, got, before = by_peft(base, source), reload(made.path).state_dict(), reload(base).state_dict()
    assert got.keys() == wanted.keys()
    for key, tensor in got.items():
        assert tensor.dtype == dtype
        # One step of the format where rounding fell the other way; float32 itself is compared in the merge.
        torch.testing.assert_close(tensor, wanted[key].to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    moved = [key for key, tensor in got.items() if not torch.equal(tensor, before[key])]
    assert len(moved) == len(adapter)
    files_of = lambda folder: {f for file in folder.glob("*.safetensors") for f in load_file(file)}  # noqa: E731
    assert files_of(made.path) == files_of(base)


def test_the_merged_model_answers_like_the_adapter(tmp_path: Path):
    base = language.save_base(tmp_path / "base")
    adapter, source = saved(tmp_path / "lora", language.adapter(alpha=9.5))
    merging.merge(adapter, source, base, tmp_path / "merged", silent)
    trained = language.model()
    language.put(trained, alpha=9.5).load(adapter)
    got, expected = language.logits(reload(tmp_path / "merged")), language.logits(trained)
    assert (got - expected).abs().max() < 1e-5 < 0.01 < (got - language.logits(language.model())).abs().max()


@pytest.mark.parametrize(("dtype", "name"), [("float32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_another_format_may_be_asked_for(dtype: str, name: str, tmp_path: Path):
    base = language.save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter, source = saved(tmp_path / "lora", language.adapter())
    made = merging.merge(adapter, source, base, tmp_path / "merged", silent, dtype=dtype)
    assert made.dtype == name
    assert {str(t.dtype) for t in load_file(made.path / "model.safetensors").values()} == {f"torch.{name}"}
    assert json.loads((made.path / "config.json").read_text())["dtype"] == name


def test_formats_that_a_base_mixes_stay_mixed(tmp_path: Path):
    base = language.save_base(tmp_path / "base", dtype=torch.bfloat16)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float() * 1.0001
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    adapter, source = saved(tmp_path / "lora", language.adapter())
    made = merging.merge(adapter, source, base, tmp_path / "merged", silent)
    assert made.dtype == "bfloat16, float32"
    written = load_file(made.path / "model.safetensors")
    assert torch.equal(written["model.norm.weight"], weights["model.norm.weight"])
    assert written["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_everything_beside_the_weights_is_copied(tmp_path: Path):
    from transformers import AutoTokenizer

    base = language.save_base(tmp_path / "base", max_shard_size="20KB")
    # transformers loads these settings, and refuses to save them.
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.3, "eos_token_id": 2}')
    (base / "LICENSE.txt").write_text("Apache-2.0")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    (base / "modeling_evil.py").write_text("raise SystemExit")
    (base / "optimizer.pt").write_text("x")
    adapter, source = saved(tmp_path / "lora", language.adapter())
    merged = merging.merge(adapter, source, base, tmp_path / "deep" / "merged", silent).path
    here = {file.relative_to(merged).as_posix() for file in merged.rglob("*") if file.is_file()}
    assert here == {
        *("config.json", "model.safetensors", "generation_config.json", "LICENSE.txt", "lora_scripts.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        "additional_chat_templates/tool_use.jinja",
    }
    for name in here - {"config.json", "model.safetensors", "lora_scripts.json"}:
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    assert len({(merged / name).stat().st_mode for name in ("config.json", "model.safetensors")}) == 1
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False) == "<user>w3</s>"
    assert merging.is_ours(merged) and not merging.is_ours(base)
    assert json.loads((merged / "lora_scripts.json").read_text())["adapter"] == "tiny drafts"
    assert [path.name for path in merged.parent.iterdir()] == ["merged"]


def test_an_output_layer_of_its_own_is_merged_and_a_shared_one_refused(tmp_path: Path):
    # Training here gives the output layer no pair; PEFT does where it is asked to.
    made = language.adapter((r".*v_proj",))
    pairs, head = made.pairs["language_model"], language.model().lm_head.weight
    pair = LoraPair(torch.randn(4, head.shape[1]) * 0.1, torch.randn(head.shape[0], 4) * 0.1, 8.0)
    made = Adapter({"language_model": {**pairs, "lm_head": pair}}, made.meta)
    adapter, source = saved(tmp_path / "lora", made)
    base = language.save_base(tmp_path / "own")
    merging.merge(adapter, source, base, tmp_path / "merged", silent)
    got, before = reload(tmp_path / "merged"), language.model()
    assert not torch.equal(got.lm_head.weight, before.lm_head.weight)
    assert torch.equal(got.model.embed_tokens.weight, before.model.embed_tokens.weight)
    shared = language.save_base(tmp_path / "shared", tie_word_embeddings=True)
    with pytest.raises(BaseModelError, match="lm_head"):
        merging.merge(adapter, source, shared, tmp_path / "refused", silent)
    plain, source = saved(tmp_path / "plain", language.adapter())
    merging.merge(plain, source, shared, tmp_path / "tied", silent)
    got = reload(tmp_path / "tied")
    assert got.lm_head.weight is got.model.embed_tokens.weight
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("rslora", [False, True])
def test_folders_that_peft_wrote_are_merged(rslora: bool, tmp_path: Path):
    from tests.adapters.test_language import by_peft as train

    source, trained = train(
        tmp_path / "lora", use_rslora=rslora, rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3}
    )
    base = language.save_base(tmp_path / "base")
    merging.merge(files.load(source), source / "adapter_model.safetensors", base, tmp_path / "merged", silent)
    difference = language.logits(reload(tmp_path / "merged")) - language.logits(trained)
    assert difference.abs().max() < 1e-5


def test_what_peft_sees_otherwise_is_an_error(tmp_path: Path):
    base = language.save_base(tmp_path / "base")
    adapter, source = saved(tmp_path / "lora", language.adapter())
    pairs = dict(adapter.pairs[COMPONENT])
    module = language.MODULE
    scaled = {**pairs, module: replace(pairs[module], alpha=pairs[module].alpha * 1.00001)}
    fewer = {path: pair for path, pair in pairs.items() if path != module}
    for wrong in (scaled, fewer):
        with pytest.raises(NumericsError, match=module):
            merging.merge(Adapter({COMPONENT: wrong}, adapter.meta), source, base, tmp_path / "merged", silent)
    part, source = saved(tmp_path / "part", Adapter({COMPONENT: fewer}, adapter.meta))
    with pytest.raises(NumericsError, match=module):
        merging.merge(adapter, source, base, tmp_path / "merged", silent)
    assert len(part) == len(adapter) - 1 and not (tmp_path / "merged").exists()


def test_a_file_that_differs_from_the_merge_is_an_error(tmp_path: Path):
    base = language.save_base(tmp_path / "base")
    live = reload(base).state_dict()
    merging._compare(base, base, live)
    changed = {**live, "model.norm.weight": live["model.norm.weight"] * 1.001}
    fewer = {name: tensor for name, tensor in live.items() if name != "model.norm.weight"}
    for wrong in (changed, fewer, {**live, "more": torch.ones(1)}):
        with pytest.raises(NumericsError, match="1 tensors"):
            merging._compare(base, base, wrong)
    (base / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(NumericsError, match="transformers"):
        merging._compare(base, base, live)


def test_values_that_do_not_fit_are_refused_by_name(tmp_path: Path):
    base = language.save_base(tmp_path / "base", dtype=torch.bfloat16)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    adapter, source = saved(tmp_path / "lora", language.adapter())
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.up_proj\.weight is not finite in float16"):
        merging.merge(adapter, source, base, tmp_path / "merged", silent, dtype="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "lora"]


def broken(base: Path, do: str) -> None:
    config = json.loads((base / "config.json").read_text())
    if do == "quantised":
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    elif do == "unknown kind":
        config["model_type"] = "no such kind"
    elif do == "no config":
        (base / "config.json").write_text("{")
        return
    elif do == "cut weights":
        (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    elif do == "no weights":
        (base / "model.safetensors").unlink()
    elif do == "fewer layers":
        language.save_base(base, num_hidden_layers=1)
        return
    elif do == "wider":
        language.save_base(base, intermediate_size=64)
        return
    (base / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("quantised", "gptq"),
        ("unknown kind", "cannot be loaded"),
        ("no config", "not readable"),
        ("cut weights", "cannot be loaded"),
        ("no weights", "cannot be loaded"),
        ("fewer layers", "7 of its modules"),
        ("wider", "6 of its modules"),
    ],
)
def test_bases_that_do_not_do(do: str, words: str, tmp_path: Path):
    base = language.save_base(tmp_path / "base")
    broken(base, do)
    adapter, source = saved(tmp_path / "lora", language.adapter())
    with pytest.raises(BaseModelError) as caught:
        merging.merge(adapter, source, base, tmp_path / "merged", silent)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "lora"]


def test_a_second_merge_replaces_the_first_and_a_failed_one_does_not(tmp_path: Path):
    base = language.save_base(tmp_path / "base")
    adapter, source = saved(tmp_path / "lora", language.adapter())
    target = tmp_path / "merged"
    merging.merge(adapter, source, base, target, silent)
    first = (target / "model.safetensors").read_bytes()
    # What a killed merge leaves is swept.
    (tmp_path / ".unfinished-merged").mkdir()
    (tmp_path / ".unfinished-merged" / "half").write_text("x")
    other, more = saved(tmp_path / "other", language.adapter(alpha=1.0))
    merging.merge(other, more, base, target, silent)
    second = (target / "model.safetensors").read_bytes()
    assert second != first and "half" not in {path.name for path in target.iterdir()}
    with pytest.raises(LoraScriptsError):
        merging.merge(other, source, base, target, silent)
    assert (target / "model.safetensors").read_bytes() == second
    merging.merge(adapter, source, base, target, silent)
    assert (target / "model.safetensors").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "lora", "merged", "other"]


def test_a_place_that_cannot_be_written_is_an_error_of_the_machine(tmp_path: Path):
    base = language.save_base(tmp_path / "base")
    adapter, source = saved(tmp_path / "lora", language.adapter())
    (tmp_path / "a file").write_text("x")
    with pytest.raises(MachineError):
        merging.merge(adapter, source, base, tmp_path / "a file" / "merged", silent)
