"""Every broken config gets all its problems at once, with file and line, in under a second."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lora_scripts.config.load import MAX_ALIASES, load
from lora_scripts.config.schema import RunConfig, warmup_steps
from lora_scripts.errors import ConfigError

GOOD = """\
train_data_dir: "./data/style_train"
metadata_path: "./data/style_train/metadata.csv"
base_model: "./models/base.safetensors"
lora_rank: 8
batch_size: 4
epochs: 10
learning_rate: 2e-4
output_dir: "./output/my_style_lora"
save_steps: 100
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_nine_flat_keys_are_enough(tmp_path):
    config = load(write(tmp_path, GOOD))
    assert config.learning_rate == 2e-4
    assert config.lora_rank == 8 and config.resolved_alpha == 8.0
    assert config.batch_size == 4 and config.epochs == 10 and config.save_steps == 100
    assert config.resolved_name == "my_style_lora"
    assert config.output_dir == Path("output/my_style_lora")


BROKEN = [
    ("unknown key", "lora_rnk: 8", "run.yaml:10: Unknown key lora_rnk; did you mean lora_rank?"),
    ("unknown nested key", "caption: {triger: x}", "run.yaml:10: Unknown key caption.triger; did you mean trigger?"),
    ("wrong type", "seed: many", 'run.yaml:10: seed is "many"; expected: int.'),
    ("a switch for a number", "seed: true", "run.yaml:10: seed is True; expected: a whole number."),
    ("too small", "lora_dropout: -1", "run.yaml:10: lora_dropout is -1; allowed: >= 0"),
    ("not a choice", "loss: l3", "run.yaml:10: loss is \"l3\"; allowed: 'mse', 'huber' or 'l1'."),
    ("unknown optimizer", "optimizer: adamm", "did you mean adamw?"),
    ("unknown option of a plug-in", "optimizer: {name: adamw, beta3: 1}", "Unknown key optimizer.beta3"),
    ("option out of range", "optimizer: {name: adamw, beta1: 2}", "optimizer.beta1 is 2; allowed: < 1"),
    ("unknown exporter", "exporters: [kohia]", "did you mean kohya?"),
    ("unknown family", "family: sd15", "did you mean sd?"),
    ("key twice", "seed: 1\nseed: 2", "run.yaml:11"),
    ("a tab", "caption:\n\ttrigger: x", "run.yaml:11"),
    ("not a number", "learning_rate_: .nan", "Unknown key learning_rate_"),
    ("bad warm-up", 'warmup: "5 apples"', "run.yaml:10: warmup is"),
    ("bad name", 'name: "a:b"', "run.yaml:10: name is"),
    ("two kinds of data", "datasets: [{path: x}]", "Both train_data_dir and datasets are given"),
    ("size too small in a list", "resolution: [512, 4]", "run.yaml:10: resolution.1 is 4; allowed: >= 8"),
]


@pytest.mark.parametrize(("line", "sentence"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_broken_line_is_named(tmp_path, line, sentence):
    assert sentence in refusal(write(tmp_path, GOOD + line + "\n"))


def test_the_table_is_whole():
    assert len(BROKEN) == 18


def test_all_problems_come_in_one_go_in_line_order_and_fast(tmp_path):
    path = write(
        tmp_path, GOOD.replace("lora_rank: 8", "lora_rank: 0").replace("epochs: 10", "epochs: 2.5") + "bogus: 1\n"
    )
    started = time.perf_counter()
    lines = refusal(path, "seed=-1").splitlines()
    assert time.perf_counter() - started < 1
    assert [line.split(": ")[1].split()[0] for line in lines] == ["seed", "lora_rank", "epochs", "Unknown"]


def test_missing_required_keys_are_named(tmp_path):
    message = refusal(write(tmp_path, "lora_rank: 4\n"))
    assert all(f"The key {key} is missing" in message for key in ("base_model", "output_dir", "train_data_dir"))


def test_a_file_that_is_not_there_lists_its_neighbours(tmp_path):
    write(tmp_path, GOOD)
    assert "run.yaml" in refusal(tmp_path / "rum.yaml")


def test_overrides_go_through_the_same_validation(tmp_path):
    path = write(tmp_path, GOOD)
    config = load(path, ["lora_rank=16", "caption.trigger=zxc", "preview=false", "optimizer.weight_decay=0.1"])
    assert config.lora_rank == 16 and config.caption.trigger == "zxc" and not config.preview.enabled
    assert "--set lora_rank=0" in refusal(path, "lora_rank=0")
    assert "--set rank" in refusal(path, "rank")
    assert "did you mean lora_rank" in refusal(path, "lora_ranks=3")


def test_short_forms_mean_their_long_forms(tmp_path):
    config = load(write(tmp_path, GOOD + "preview: off\nresolution: 256\ntrain_text_encoder: true\nlora_alpha: auto\n"))
    assert not config.preview.enabled and config.resolution == (256,)
    assert config.train_text_encoder.enabled and config.resolved_alpha == 8.0


def test_many_aliases_are_refused_before_they_are_expanded(tmp_path):
    lines = ["a: &a [x, x]"] + [f"b{i}: *a" for i in range(MAX_ALIASES + 1)]
    assert "aliases" in refusal(write(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"- a\n- b\n", b"", b"a: [1,\n", b"\x00"])
def test_files_that_are_no_config(tmp_path, data):
    path = tmp_path / "run.yaml"
    path.write_bytes(data)
    assert "run.yaml" in refusal(path)


def test_every_field_has_a_description_in_both_languages():
    from lora_scripts import messages

    names = list(RunConfig.model_fields)
    assert len(names) >= 40
    for language in messages.LANGUAGES:
        assert [n for n in names if f"config.key.{n}" not in messages.catalogue(language)] == []


def test_warm_up_reads_percent_and_steps():
    assert warmup_steps("5%", 200) == 10
    assert warmup_steps("30 steps", 200) == 30
    assert warmup_steps(7, 200) == 7
    with pytest.raises(ValueError):
        warmup_steps("200%", 10)
