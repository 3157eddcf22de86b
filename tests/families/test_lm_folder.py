"""Folders offered as a language model: what is none is refused in a sentence, and nothing in it is run."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import registry
from lora_scripts.config.load import from_mapping
from lora_scripts.contracts import Base, Placement
from lora_scripts.errors import BaseModelError, LoraScriptsError, MachineError
from lora_scripts.families import _lm_folder
from lora_scripts.preparation import find_base
from tests import tiny_text

CPU = Placement(device=torch.device("cpu"), base_dtype=torch.float32, encoder_dtype=torch.float32)
Harm = Callable[[Path], Path | None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to break; never the same path twice, since tokenizers are kept by path."""
    return shutil.copytree(good, tmp_path / "base")


def find(path: Path | str) -> Base:
    """What `base_model` would be taken for."""
    return find_base(from_mapping({"base_model": str(path), "train_data_dir": ".", "output_dir": "."}))


def load(base: Base):
    return registry.load("families", "causal_lm").plugin.load(base, CPU)


# What a good one is


def test_a_folder_is_known_from_its_headers(good: Path):
    base = find(good)
    assert (base.family, base.variant, base.prediction_type) == ("causal_lm", "llama", "next token")
    assert (base.max_tokens, base.resolution, base.webui) == (512, 0, False)
    assert base.reference == str(good.resolve()) and base.name == good.name
    weights = load_file(good / "model.safetensors")
    assert base.parameters == {"language_model": sum(tensor.numel() for tensor in weights.values())}
    assert _lm_folder.vocabulary(base) == 259


def test_weights_in_several_files_are_one_model(good: Path, folder: Path):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for file, chosen in parts.items():
        save_file({name: weights[name] for name in chosen}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    base, whole = find(folder), find(good)
    assert base.parameters == whole.parameters
    made, wanted = load(base).model.state_dict(), load(whole).model.state_dict()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    # One file short: refused, not filled up with random numbers.
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BaseModelError):
        load(find(folder))
    with pytest.raises(BaseModelError):
        _lm_folder.weights_hash(base)


def test_the_hash_follows_the_weights_and_nothing_else(folder: Path):
    base = find(folder)
    before = _lm_folder.weights_hash(base)
    (folder / "README.md").write_text("x")
    assert _lm_folder.weights_hash(base) == before
    weights = load_file(folder / "model.safetensors")
    weights[next(iter(weights))][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert _lm_folder.weights_hash(base) != before


# What is refused


def settings(**values: object) -> Harm:
    """Change config.json."""

    def harm(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return harm


def text_of(name: str, text: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).write_text(text)

    return harm


def without(*names: str) -> Harm:
    def harm(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return harm


def _bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=20, **small)).save_pretrained(folder)


class _Bomb:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))


def _adapter(folder: Path) -> None:
    _put_adapter(folder)
    (folder / "config.json").unlink()


def _put_adapter(folder: Path) -> None:
    """Add what PEFT would save: from here on transformers takes the folder for base and adapter in one."""
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    pairs = {name.format("A"): torch.ones(2, 32), name.format("B"): torch.ones(32, 2)}
    save_file(pairs, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _gguf(folder: Path) -> Path:
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    return folder / "model.gguf"


def _lora_file(folder: Path) -> Path:
    _put_adapter(folder)
    return folder / "adapter_model.safetensors"


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])


def _no_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


TABLE: list[tuple[str, Harm, str, str]] = [
    ("not a causal language model", _bert, "llm.not_causal", "BertModel"),
    ("an architecture that is no list", settings(architectures=3), "llm.not_causal", "llama"),
    ("no architecture", settings(architectures=None), "llm.not_causal", "llama"),
    ("no weights", without("model.safetensors"), "llm.no_weights", "safetensors"),
    ("pickled weights", _pickled, "base.pickle", "pytorch_model.bin"),
    ("broken config", text_of("config.json", '{"architectures": ['), "base.broken_json", "config.json"),
    ("config of a list", text_of("config.json", "[]"), "base.broken_json", "config.json"),
    ("config without end", text_of("config.json", '{"a":' * 100_000), "base.broken_json", "config.json"),
    (
        "config of bytes",
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}") and None,
        "base.broken_json",
        "",
    ),
    ("an adapter", _adapter, "base.is_lora", "init_lora"),
    ("an adapter beside the base", _put_adapter, "llm.base_with_adapter", "init_lora"),
    ("a gguf file", _gguf, "llm.gguf_base", "embedded/smollm2"),
    ("a lora file", _lora_file, "base.is_lora", "init_lora"),
    ("quantised", settings(quantization_config={"bits": 4}), "llm.quantised_base", "base_precision: nf4"),
    ("no tokenizer", without("tokenizer.json", "tokenizer_config.json"), "llm.no_tokenizer", "tokenizer.json"),
    ("weights cut short", _cut, "adapter.truncated", "cut short"),
    ("header cut short", _cut_header, "adapter.truncated", "cut short"),
    ("no weights file", _no_header, "adapter.not_safetensors", "model.safetensors"),
]


@pytest.mark.parametrize(("harm", "code", "said"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_refused_before_anything_is_loaded(
    folder: Path, harm: Harm, code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = harm(folder) or folder
    with pytest.raises(BaseModelError) as caught:
        find(path)
    sentence = str(caught.value)
    assert caught.value.code == code and caught.value.exit_code == 2
    assert str(path) in sentence and said in sentence and "\n" not in sentence
    assert not (tmp_path / "canary").exists()


def test_the_table_is_whole():
    assert len(TABLE) == 18


def test_the_bomb_would_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Opening the pickle leaves the canary: the test above can fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(_Bomb()))
    assert (tmp_path / "canary").exists()


def test_a_context_that_is_no_number_is_taken_as_unknown(folder: Path):
    settings(max_position_embeddings="many")(folder)
    assert find(folder).max_tokens == _lm_folder.DEFAULT_CONTEXT


def test_a_hub_id_without_network_is_a_sentence():
    """The tests are offline: conftest.py says so to the hub's library."""
    with pytest.raises(MachineError) as caught:
        find("nobody/no-such-model")
    sentence = str(caught.value)
    assert caught.value.exit_code == 4 and "nobody/no-such-model" in sentence and "\n" not in sentence


def test_a_name_that_is_neither_path_nor_hub_id_is_not_looked_for_there(tmp_path: Path):
    with pytest.raises(BaseModelError) as caught:
        find(tmp_path / "nowhere")
    assert caught.value.code == "base.not_found"


# What only loading shows


def _not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _one_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _one_smaller(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "code", "said"),
    [
        (_not_a_number, "base.weights_not_finite", "layers.1.mlp.up_proj"),
        (_one_missing, "base.part_missing", "layers.1.mlp.up_proj"),
        (_one_smaller, "base.part_missing", "layers.1.mlp.up_proj"),
        (settings(model_type="yottaformer"), "base.cannot_load", "yottaformer"),
        (settings(num_hidden_layers="two"), "base.cannot_load", "num_hidden_layers"),
        (text_of("tokenizer.json", "{}"), "base.cannot_load", "another base"),
        (text_of("generation_config.json", "[]"), "base.cannot_load", "another base"),
    ],
    ids=["not finite", "one missing", "one smaller", "unknown kind", "bad setting", "tokenizer", "generation config"],
)
def test_refused_when_it_is_loaded(folder: Path, harm: Harm, code: str, said: str):
    harm(folder)
    base = find(folder)
    with pytest.raises(BaseModelError) as caught:
        load(base)
    assert caught.value.code == code and said in str(caught.value)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value) and ".." not in str(caught.value)


def test_a_tokenizer_without_a_quick_form_is_refused(folder: Path):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate("abc")}))
    settings_of_tokenizer = {"tokenizer_class": "CTRLTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_of_tokenizer))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(BaseModelError) as caught:
        _lm_folder.renderer(find(folder))
    assert caught.value.code == "llm.slow_tokenizer" and "tokenizer.json" in str(caught.value)


def test_tokens_that_the_base_does_not_know_are_refused_before_training(folder: Path):
    from lora_scripts.data.record import Message, TextRow
    from lora_scripts.families._texts import Limits, tokenise

    settings(vocab_size=200)(folder)
    base = find(folder)
    row = TextRow("r", "chat", (Message("user", "hé"), Message("assistant", "ok")))
    with pytest.raises(BaseModelError) as caught:
        tokenise(
            [row], _lm_folder.renderer(base), Limits(None, "completions", 512, _lm_folder.vocabulary(base)), None, ""
        )
    assert caught.value.code == "llm.tokens_beyond" and "200" in str(caught.value)


# Code that comes with a base


CANARY = """\
from pathlib import Path
Path({path!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def canary(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A base that brings code for its config, model and tokenizer, and a user who says yes to whatever is asked."""
    place = tmp_path / "canary"
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(CANARY.format(path=str(place)))
    classes = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        "AutoTokenizer": ["tokenization_own.OwnTokenizer", "tokenization_own.OwnTokenizer"],
    }
    settings(auto_map=classes)(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": classes["AutoTokenizer"]}})
    )
    (tmp_path / "yes").write_text("y\n" * 20)
    with (tmp_path / "yes").open() as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        yield place


def test_code_of_a_base_that_transformers_knows_is_passed_over(folder: Path, canary: Path):
    base = find(folder)
    assert type(_lm_folder.skeleton(base)).__name__ == type(load(base).model).__name__ == "LlamaForCausalLM"
    assert not canary.exists()


def test_a_base_that_only_its_own_code_knows_is_refused(folder: Path, canary: Path):
    settings(model_type="own", architectures=["OwnForCausalLM"])(folder)
    base = find(folder)
    for make in (_lm_folder.skeleton, load):
        with pytest.raises(LoraScriptsError) as caught:
            make(base)
        assert caught.value.code == "llm.remote_code" and str(folder) in str(caught.value)
    assert not canary.exists()


def test_the_canary_would_sing(folder: Path, canary: Path):
    """Asked without our refusal, transformers takes the yes and runs the code: the tests above can fail."""
    from transformers import AutoConfig

    settings(model_type="own", architectures=["OwnForCausalLM"])(folder)
    AutoConfig.from_pretrained(folder, local_files_only=True)
    assert canary.read_text() == "ran"
