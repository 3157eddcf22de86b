"""Runs on a tiny language model: what comes out is what plain peft loads, whatever the way a step was computed."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import answering
from lora_scripts.data.record import Message
from lora_scripts.data.texts import tasks
from lora_scripts.errors import BaseModelError, ConfigError, Stopped
from tests import tiny_text
from tests.app.test_kill import start, steps_done, wait_for
from tests.app.text_runs import FILES, asked, by_hand, bytes_of, logprobs, losses_of, plain, say, stop_at, train

# All rows in one step, so that a loss can be compared with one made by hand.
WHOLE = {"batch_size": 16, "batch_tokens": 4096, "gradient_accumulation": 1, "epochs": 1, "warmup": 0}


# What a run leaves


def test_plain_peft_gives_the_answers_of_our_sampler(text_base: Path, text_adapter: Path):
    words, model = plain(text_base, text_adapter)
    named = answering.parse_adapters([str(text_adapter)])
    speaker = answering.open_speaker(named)
    assert speaker.base.path == text_base.resolve()
    texts = ["my card was charged twice", "the parcel never came, 包裹呢", "x"]
    prompts = [(Message("user", text),) for text in texts]
    with speaker.wearing("") as family:
        ours = family.preview(prompts, seed=0, new_tokens=24)
    with speaker.wearing(None) as family:
        bare = family.preview(prompts, seed=0, new_tokens=24)
    for text, answer in zip(texts, ours, strict=True):
        ids = words.apply_chat_template(say(text), add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, do_sample=False, max_new_tokens=24)[0, ids["input_ids"].shape[1] :]
        assert words.decode(made, skip_special_tokens=True).strip() == answer
    assert ours != bare and all(ours)


def test_the_labels_are_scored_as_plain_peft_scores_them(text_base: Path, text_adapter: Path):
    words, model = plain(text_base, text_adapter)
    speaker = answering.open_speaker(answering.parse_adapters([str(text_adapter)]))
    message, labels = "tracking has not moved", ("billing", "delivery")
    prompt = asked(*tasks.classify_prompt(message))
    wanted = torch.tensor([logprobs(words, model, prompt, label).sum() for label in labels]).softmax(0)
    ((label, confidence, _),) = answering.classify(
        _warm(speaker, 1.0), [{"message": message}], lambda done, total: None
    )
    assert labels.index(label) == int(wanted.argmax()) and confidence == pytest.approx(float(wanted.max()), abs=2e-4)


def _warm(speaker: answering.Speaker, temperature: float) -> answering.Speaker:
    for name, named in speaker.adapters.items():
        task = dataclasses.replace(named.task, temperature=temperature)
        speaker.adapters[name] = dataclasses.replace(named, task=task)
    return speaker


def test_a_run_says_what_it_was_made_from(text_base: Path, text_adapter: Path):
    config = json.loads((text_adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(text_base.resolve())
    assert (config["r"], config["lora_alpha"], config["peft_type"], config["task_type"]) == (4, 8, "LORA", "CAUSAL_LM")
    task = json.loads((text_adapter / "task.json").read_text())
    assert task["labels"] == ["billing", "delivery"] and task["temperature"] == 1.0 and task["abstain_below"] == 0.0
    assert len(load_file(text_adapter / FILES[0])) == 2 * 14


def test_two_fresh_runs_give_equal_bytes(text_base: Path, tmp_path: Path):
    for name in ("one", "two"):
        train(tmp_path, text_base, output_dir=str(tmp_path / name), name="same", lora_dropout=0.1)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    train(tmp_path, text_base, output_dir=str(tmp_path / "three"), name="same", lora_dropout=0.1, seed=7)
    assert bytes_of(tmp_path / "one")[0] != bytes_of(tmp_path / "three")[0]


def test_a_stopped_run_goes_on_to_the_same_bytes(text_base: Path, tmp_path: Path):
    values = {
        "epochs": 4,
        "save_steps": 3,
        "lora_dropout": 0.1,
        "validation": {"share": 0.3, "answers": 2},
        "name": "same",
    }
    train(tmp_path, text_base, output_dir=str(tmp_path / "whole"), **values)
    with pytest.raises(Stopped):
        train(tmp_path, text_base, listeners=[stop_at(2)], **values)
    assert not train(tmp_path, text_base, **values).already
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert (tmp_path / "out" / "report.md").read_text() == (tmp_path / "whole" / "report.md").read_text()
    assert train(tmp_path, text_base, **values).already


# Continuing an adapter


@pytest.mark.parametrize("split", [(16, 1), (1, 16)], ids=["at once", "row by row"])
def test_the_first_loss_of_a_continued_adapter_is_its_own(text_base: Path, text_adapter: Path, tmp_path: Path, split):
    """Rows are of unequal length: a step's loss is the mean over its tokens, however it is split."""
    words, model = plain(text_base, text_adapter)
    batch, accumulation = split
    values = WHOLE | {"batch_size": batch, "gradient_accumulation": accumulation}
    losses = losses_of(tmp_path, text_base, init_lora=str(text_adapter), **values)
    assert losses[0] == pytest.approx(by_hand(words, model), rel=1e-5)
    assert losses_of(tmp_path, text_base, output_dir=str(tmp_path / "fresh"), **values)[0] > 1.05 * losses[0]


def _other_base(tmp_path: Path, text_adapter: Path) -> dict[str, Any]:
    return {"base_model": str(tiny_text.write_base(tmp_path / "stranger", seed=1))}


def _no_config(tmp_path: Path, text_adapter: Path) -> dict[str, Any]:
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / FILES[0]).write_bytes((text_adapter / FILES[0]).read_bytes())
    return {"init_lora": str(lone)}


REFUSED: list[tuple[str, Any, str, str]] = [
    ("another base", _other_base, "llm.init_other_base", "base_model"),
    ("another rank", lambda *_: {"lora_rank": 2}, "adapter.wrong_rank", "lora_rank: 4"),
    ("other layers", lambda *_: {"lora_targets": "q_v"}, "adapter.unknown_modules", "lora_targets"),
    ("no such folder", lambda path, _: {"init_lora": str(path / "nobody")}, "adapter.no_file", "nobody"),
    ("no config", _no_config, "adapter.no_peft_config", "adapter_config.json"),
]


@pytest.mark.parametrize(("change", "code", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_an_adapter_that_does_not_fit_is_refused_before_training(
    text_base: Path, text_adapter: Path, tmp_path: Path, change: Any, code: str, said: str
):
    values = {"init_lora": str(text_adapter)} | change(tmp_path, text_adapter)
    with pytest.raises(BaseModelError) as caught:
        train(tmp_path, text_base, **values)
    assert caught.value.code == code and said in str(caught.value), str(caught.value)
    assert not (tmp_path / "out" / "events.jsonl").exists()


# Which layers


def chosen(folder: Path) -> set[str]:
    found = {name.rpartition(".lora_")[0] for name in load_file(folder / FILES[0])}
    return {name.removeprefix("base_model.model.") for name in found}


def test_plain_names_of_layers_mean_what_they_mean_to_peft(text_base: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "v_proj", "mlp.up_proj"]
    train(tmp_path, text_base, lora_targets=names, epochs=1)
    model = get_peft_model(plain(text_base)[1], LoraConfig(target_modules=names))
    theirs = {path for path, module in model.base_model.model.named_modules() if getattr(module, "lora_A", None)}
    assert chosen(tmp_path / "out") == theirs and len(theirs) == 6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "up_proj", "v_proj"]


def test_expressions_still_match_whole_paths(text_base: Path, tmp_path: Path):
    train(tmp_path, text_base, lora_targets=[r".*\.0\.self_attn\.(q|k)_proj"], epochs=1)
    assert chosen(tmp_path / "out") == {f"model.layers.0.self_attn.{name}_proj" for name in "qk"}


@pytest.mark.parametrize(
    ("names", "wrong", "nearest"),
    [
        (["q_prj"], "q_prj", "self_attn.q_proj"),
        (["q_proj", "attn.v_proj"], "attn.v_proj", "self_attn.v_proj"),
        (["proj"], "proj", "_proj"),
        (["lm_head"], "lm_head", "model.layers"),
    ],
)
def test_an_unknown_layer_is_told_with_the_nearest_names(
    text_base: Path, tmp_path: Path, names, wrong: str, nearest: str
):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, text_base, lora_targets=names)
    sentence = str(caught.value)
    assert caught.value.code == "adapter.no_target" and f"lora_targets {wrong} " in sentence
    assert nearest in sentence.partition("nearest")[2]
    assert not (tmp_path / "out").exists()


def test_the_head_gets_no_pair_that_would_never_learn(tmp_path: Path):
    """Its weights are fixed in how the loss is computed, so even an expression that matches all leaves it out."""
    loose = tiny_text.write_base(tmp_path / "loose", tie_word_embeddings=False)
    train(tmp_path, loose, lora_targets=[".*"], epochs=1)
    assert len(chosen(tmp_path / "out")) == 14 and "lm_head" not in chosen(tmp_path / "out")
    ups = {name: tensor for name, tensor in load_file(tmp_path / "out" / FILES[0]).items() if "lora_B" in name}
    assert len(ups) == 14 and all(bool(tensor.any()) for tensor in ups.values())


# Splitting a step


def test_every_split_of_a_step_gives_equal_weights(text_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Five steps in float64: the base, the pairs and the optimizer; rows of unequal length and weight."""
    from lora_scripts import assembly
    from lora_scripts.train import precision

    monkeypatch.setitem(precision.DTYPES, "float32", "float64")
    inject = assembly.inject

    def inject_double(*arguments: Any, **options: Any):
        injected = inject(*arguments, **options)
        for layer in [layer for group in injected.layers.values() for layer in group.values()]:
            layer.lora_A.double()
            layer.lora_B.double()
        return injected

    monkeypatch.setattr(assembly, "inject", inject_double)
    weighted = []
    for n in range(1, 6):
        answer = {"role": "assistant", "content": "a" * n, "weight": 0.5 + n}
        weighted.append({"messages": [{"role": "user", "content": "q" * n}, answer]})
    more = tiny_text.write_rows(tmp_path / "more.jsonl", weighted)
    data = [{"path": str(tmp_path / "train.jsonl")}, {"path": str(more), "weight": 3.0, "repeats": 2}]
    tiny_text.write_rows(tmp_path / "train.jsonl", tiny_text.task_rows())
    results = []
    for number, (batch, accumulation, budget) in enumerate(((4, 1, 4096), (2, 2, 4096), (1, 4, 4096), (4, 1, 130))):
        out = tmp_path / f"split-{number}"
        shape = {"batch_size": batch, "gradient_accumulation": accumulation, "batch_tokens": budget}
        with pytest.raises(Stopped):
            train(
                tmp_path,
                text_base,
                train_data_dir=None,
                datasets=data,
                output_dir=str(out),
                listeners=[stop_at(5)],
                **shape,
            )
        found = load_file(out / "checkpoints" / "step-5" / "state.safetensors")
        results.append({name: tensor for name, tensor in found.items() if name.startswith("weight/")})
    assert len(results[0]) == 28 and all(tensor.dtype == torch.float64 for tensor in results[0].values())
    for other in results[1:]:
        assert max(float((results[0][name] - other[name]).abs().max()) for name in other) < 1e-10


def test_float32_splits_agree_as_far_as_it_can_count(text_base: Path, tmp_path: Path):
    results = []
    for batch, budget in ((4, 4096), (1, 4096), (4, 130)):
        out = tmp_path / f"{batch}-{budget}"
        shape = {"batch_size": batch, "gradient_accumulation": 4 // batch, "batch_tokens": budget}
        train(tmp_path, text_base, output_dir=str(out), name="same", learning_rate=1e-3, **shape)
        results.append(load_file(out / FILES[0]))
    for other in results[1:]:
        assert max(float((results[0][name] - other[name]).abs().max()) for name in other) < 1e-5


def test_kill_nine_and_the_same_command_again(text_base: Path, tmp_path: Path):
    """Between two saves, with measurements, the best step and dropout to be carried over."""
    section = {"share": 0.3, "answers": 0, "use_best": True}
    values = {"epochs": 16, "save_steps": 4, "keep_checkpoints": 2, "lora_dropout": 0.1, "validation": section}
    train(tmp_path, text_base, output_dir=str(tmp_path / "whole"), name="same", **values)
    config = tiny_text.config(tmp_path, base_model=str(text_base), name="same", **values)
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    out = tmp_path / "out"
    process = start(tmp_path / "run.yaml")
    wait_for(lambda: steps_done(out) >= 10 and steps_done(out) % 4 == 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / FILES[0]).exists() and any((out / "checkpoints").iterdir())
    told: list[str] = []
    outcome = train(tmp_path, text_base, name="same", told=lambda code, **params: told.append(code), **values)
    assert "train.resuming" in told and not outcome.already
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert (out / "report.md").read_text() == (tmp_path / "whole" / "report.md").read_text()
