"""What is learned from which rows: DPO and KTO against a frozen adapter, and data or keys that do not belong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import app
from lora_scripts.config.load import from_mapping
from lora_scripts.errors import ConfigError, DataError, LoraScriptsError
from tests import tiny_text
from tests.app.text_runs import FILES, logprobs, losses_of, pairs, plain, say, thumbs, train, write

# Preferences


@pytest.mark.parametrize("continued", [False, True], ids=["round 1", "from an adapter"])
def test_the_first_loss_of_dpo_is_the_logarithm_of_two(
    text_base: Path, text_adapter: Path, tmp_path: Path, continued: bool
):
    values = {"objective": "dpo", "train_data_dir": write(tmp_path, "pairs.jsonl", pairs()), "epochs": 3}
    losses = losses_of(tmp_path, text_base, **values, **({"init_lora": str(text_adapter)} if continued else {}))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.01


def test_kto_runs_and_starts_at_one_half(text_base: Path, text_adapter: Path, tmp_path: Path):
    """With policy and reference the same, each row's loss is 1 - sigmoid(0)."""
    values = {"objective": "kto", "train_data_dir": write(tmp_path, "thumbs.jsonl", thumbs()), "epochs": 3}
    losses = losses_of(tmp_path, text_base, init_lora=str(text_adapter), **values)
    assert losses[0] == pytest.approx(0.5, abs=1e-6) and losses[-1] < losses[0] - 0.01
    assert (tmp_path / "out" / FILES[0]).exists() and not (tmp_path / "out" / "task.json").exists()


def test_the_reference_is_the_adapter_that_training_starts_from_and_is_kept(
    text_base: Path, text_adapter: Path, tmp_path: Path
):
    data = write(tmp_path, "pairs.jsonl", pairs())
    values = {"objective": "dpo", "train_data_dir": data, "epochs": 1}
    reused: list[tuple[int, int]] = []

    def told(code: str, **params: Any) -> None:
        if code == "train.cache":
            reused.append((params["reused"], params["made"]))

    def references() -> list[torch.Tensor]:
        found = [load_file(path) for path in sorted((tmp_path / "cache").rglob("*.safetensors"))]
        return [entry["reference"] for entry in found if "reference" in entry]

    adapted = {"init_lora": str(text_adapter), "learning_rate": 3e-2}
    train(tmp_path, text_base, output_dir=str(tmp_path / "one"), told=told, **values, **adapted)
    found = sorted(references(), key=lambda pair: float(pair[0]))
    words, model = plain(text_base, text_adapter)
    wanted = [
        torch.stack([logprobs(words, model, say(row["prompt"]), row[side]).sum() for side in ("chosen", "rejected")])
        for row in pairs()
    ]
    wanted.sort(key=lambda pair: float(pair[0]))
    assert len(found) == 6
    assert all(torch.allclose(a.double(), b, atol=1e-3) for a, b in zip(found, wanted, strict=True))
    # Another run from the same adapter takes them over; one from the base makes its own.
    train(tmp_path, text_base, output_dir=str(tmp_path / "two"), told=told, **values, **adapted, beta=0.3)
    train(tmp_path, text_base, output_dir=str(tmp_path / "three"), told=told, **values)
    assert reused == [(0, 6), (6, 0), (0, 6)]


def test_feedback_teaches_each_objective_its_own(text_base: Path, tmp_path: Path):
    row = {"message": "where is it", "label": "delivery", "reply": "No idea.", "adapter_sha256": "0" * 64}
    edits = [
        row | {"id": f"e{i}", "message": f"where is it {i}", "edit": {"reply": f"It comes {i}."}} for i in range(3)
    ]
    judged = [row | {"id": f"t{i}", "message": f"hm {i}", "thumb": "up" if i % 2 else "down"} for i in range(4)]
    data = write(tmp_path, "feedback.jsonl", [*edits, *judged])
    for objective in ("sft", "dpo", "kto"):
        out = tmp_path / objective
        outcome = train(tmp_path, text_base, objective=objective, train_data_dir=data, output_dir=str(out), epochs=1)
        assert (out / FILES[0]).exists()
        kinds = {example.kind for example in outcome.prepared.examples}
        assert kinds == {"sft": {"completion"}, "dpo": {"pair"}, "kto": {"thumb"}}[objective]


# What is refused


MISMATCHES: list[tuple[str, str, Any, dict[str, Any], str]] = [
    ("dpo on labels", "dpo", tiny_text.task_rows, {}, "pair"),
    ("kto on pairs", "kto", pairs, {}, "thumb"),
    ("sft on thumbs", "sft", thumbs, {}, "completion"),
    ("sft measured on pairs", "sft", tiny_text.task_rows, {"held": pairs}, "completion"),
    ("dpo measured on labels", "dpo", pairs, {"held": tiny_text.task_rows}, "pair"),
]


@pytest.mark.parametrize(
    ("objective", "rows", "more", "wanted"), [row[1:] for row in MISMATCHES], ids=[row[0] for row in MISMATCHES]
)
def test_data_of_another_kind_are_refused(text_base: Path, tmp_path: Path, objective, rows, more, wanted: str):
    values: dict[str, Any] = {"objective": objective, "train_data_dir": write(tmp_path, "rows.jsonl", rows())}
    if more:
        values["validation"] = {"paths": [write(tmp_path, "held.jsonl", more["held"]())]}
    with pytest.raises(DataError) as caught:
        train(tmp_path, text_base, **values)
    sentence = str(caught.value)
    assert caught.value.code == "data.no_kind" and objective in sentence and wanted in sentence


def test_rows_that_an_objective_does_not_learn_from_are_counted(text_base: Path, tmp_path: Path):
    data = [{"path": write(tmp_path, "pairs.jsonl", pairs())}, {"path": write(tmp_path, "thumbs.jsonl", thumbs())}]
    outcome = train(tmp_path, text_base, train_data_dir=None, datasets=data, objective="dpo", epochs=1)
    (note,) = [note for note in outcome.prepared.notes if note.code == "data.other_kinds"]
    assert note.params == {"objective": "dpo", "kinds": "thumb 6"} and len(outcome.prepared.examples) == 6


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flip", True), ("resolution", 64), ("noise_offset", 0.1), ("min_snr_gamma", 5.0), ("loss", "l1"),
        ("caption", {"trigger": "x"}), ("train_text_encoder", True), ("attention", "math"), ("beta", 0.2),
    ],
)  # fmt: skip
def test_keys_of_pictures_or_another_objective_are_errors_in_a_text_config(text_base: Path, tmp_path: Path, key, value):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, text_base, **{key: value})
    assert caught.value.code == "config.foreign_key" and key in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_on", "last"), ("beta", 0.2), ("max_length", 64), ("labels", ["a", "b"]), ("batch_tokens", 64),
        ("sft_weight", 1),
    ],
)  # fmt: skip
def test_keys_of_texts_are_errors_in_a_picture_config(base_folder: Path, pictures: Path, tmp_path: Path, key, value):
    values = {"base_model": str(base_folder), "train_data_dir": str(pictures), "output_dir": str(tmp_path / "out")}
    with pytest.raises(ConfigError) as caught:
        app.train(from_mapping(values | {key: value}))
    assert caught.value.code == "config.foreign_key" and key in str(caught.value)


def test_all_foreign_keys_are_told_at_once(text_base: Path, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, text_base, flip=True, noise_offset=0.1, beta=0.2)
    assert [problem.params["key"] for problem in caught.value.problems] == ["beta", "flip", "noise_offset"]


def test_a_longer_row_than_the_base_reads_is_not_asked_for(text_base: Path, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, text_base, max_length=1024)
    assert "1024" in str(caught.value) and "512" in str(caught.value)


def test_a_row_that_the_template_refuses_stops_before_training(text_base: Path, tmp_path: Path):
    strict = tiny_text.write_base(tmp_path / "strict")
    template = "{{ raise_exception('Only one turn, please') if messages|length > 2 else '' }}" + tiny_text.TEMPLATE
    (strict / "chat_template.jinja").write_text(template)
    turn = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    data = write(tmp_path, "chats.jsonl", [{"messages": turn}, {"messages": turn * 2}])
    with pytest.raises(LoraScriptsError) as caught:
        train(tmp_path, strict, train_data_dir=data)
    assert "chats.jsonl:2" in str(caught.value) and "Only one turn" in str(caught.value)
