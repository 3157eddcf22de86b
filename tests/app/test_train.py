"""A run end to end on a tiny base: files, curves, resuming, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import app
from lora_scripts.config.load import load
from lora_scripts.errors import BaseModelError, ConfigError, DataError, LockError, Stopped
from lora_scripts.events import Command, Stepped
from lora_scripts.runs import RunFolder
from tests import tiny

FILES = ("out.safetensors", "pytorch_lora_weights.safetensors")


def train(path: Path, *overrides: str, **options):
    return app.train(load(path, overrides), **options)


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def stop_at(step: int):
    return lambda event: Command.STOP if isinstance(event, Stepped) and event.step == step else None


def test_a_run_leaves_what_it_promises(config_file, tmp_path):
    outcome = train(config_file, "preview={prompts: [a thing], steps: 2}", "validation={share: 0.3, levels: 2}")
    out = tmp_path / "out"
    assert outcome.steps == outcome.prepared.plan.steps > 0
    top = {path.name for path in out.iterdir()}
    assert {*FILES, "run.json", "events.jsonl", "train.log", "logs", "checkpoints", "previews"} <= top
    assert {name for name in top if name.endswith(".safetensors")} == set(FILES)
    record = json.loads((out / "run.json").read_text())
    assert record["state"] == "finished" and record["config"]["lora_rank"] == 2 and len(record["data"]) == 6
    step = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    name = f"out-{step.name}"
    assert load_file(step / f"{name}.safetensors")
    assert (out / "previews" / "before_after.png").stat().st_size > 1000
    kinds = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "Started" and kinds[-1] == "Finished"
    assert {"Stepped", "EpochEnded", "Evaluated", "Previewed", "Saved"} <= set(kinds)
    tags = _tags(out / "logs")
    wanted = {"train/loss", "train/learning_rate/unet", "train/gradient_norm", "train/update_norm", "train/memory_gib"}
    assert wanted | {"epoch/loss", "validation/loss", "preview"} <= tags


def _tags(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {*reader.Tags()["scalars"], *reader.Tags()["images"]}


def test_two_fresh_runs_give_equal_bytes_and_resuming_changes_none(config_file, tmp_path):
    train(config_file)
    first = bytes_of(tmp_path / "out")
    for stop in (1, 3, 7):
        with pytest.raises(Stopped):
            train(config_file, restart=True, listeners=[stop_at(stop)])
        assert not (tmp_path / "out" / FILES[0]).exists()
        outcome = train(config_file)
        assert not outcome.already and bytes_of(tmp_path / "out") == first


def test_the_same_command_on_a_finished_run_says_so(config_file, tmp_path):
    train(config_file)
    before = bytes_of(tmp_path / "out")
    outcome = train(config_file)
    assert outcome.already and bytes_of(tmp_path / "out") == before


def test_a_changed_config_is_refused_by_field_and_free_keys_are_not(config_file):
    with pytest.raises(Stopped):
        train(config_file, listeners=[stop_at(2)])
    with pytest.raises(ConfigError) as caught:
        train(config_file, "lora_rank=4", "learning_rate=1e-3")
    assert "lora_rank was 2 when this run started and is 4 now" in str(caught.value)
    assert "learning_rate was 0.01" in str(caught.value) and "--restart" in str(caught.value)
    assert not train(config_file, "save_steps=5", "keep_checkpoints=1").already


def test_changed_data_or_base_is_refused(config_file, pictures, base_folder, tmp_path):
    with pytest.raises(Stopped):
        train(config_file, listeners=[stop_at(2)])
    caption = (pictures / "metadata.csv").read_text()
    (pictures / "metadata.csv").write_text(caption.replace("number 3", "number three"))
    with pytest.raises(DataError) as caught:
        train(config_file)
    assert "1 examples" in str(caught.value) and caught.value.exit_code == 3
    (pictures / "metadata.csv").write_text(caption)
    other = tmp_path / "other"
    shutil.copytree(base_folder, other)
    _scale(other / "unet")
    with pytest.raises((BaseModelError, ConfigError)):
        train(config_file, f"base_model={other}")


def _scale(folder: Path) -> None:
    from safetensors.torch import save_file

    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def test_a_folder_in_use_is_refused(config_file, tmp_path):
    folder = RunFolder(tmp_path / "out")
    with folder.owned(), pytest.raises(LockError) as caught:
        train(config_file)
    assert caught.value.exit_code == 6 and "in use by process" in str(caught.value)


def test_a_foreign_folder_is_left_alone(config_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.docx"):
        train(config_file)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.docx"]


def cache_entries(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").rglob("*.safetensors")}


def test_an_edit_makes_exactly_the_affected_cache_entries_new(config_file, pictures, base_folder, tmp_path):
    plain = ("flip=false", "caption.dropout=0", "epochs=1", f"base_model={tmp_path / 'base'}")
    shutil.copytree(base_folder, tmp_path / "base")

    def new_entries() -> int:
        before = cache_entries(tmp_path) if (tmp_path / "cache").exists() else set()
        train(config_file, *plain, restart=True)
        return len(cache_entries(tmp_path) - before)

    assert new_entries() == 12
    assert new_entries() == 0
    csv = pictures / "metadata.csv"
    csv.write_text(csv.read_text().replace("number 3", "number three"))
    assert new_entries() == 1
    from PIL import Image

    picture = sorted(pictures.glob("*.png"))[2]
    with Image.open(picture) as old:
        changed = old.convert("RGB")
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(picture)
    assert new_entries() == 1
    _scale(tmp_path / "base" / "vae")
    assert new_entries() == 6
    _scale(tmp_path / "base" / "text_encoder")
    assert new_entries() == 6


def test_the_first_loss_of_a_continued_lora_is_its_own(config_file, tmp_path):
    losses: list[float] = []

    def note(event):
        if isinstance(event, Stepped):
            losses.append(event.loss)

    train(config_file, "lora_dropout=0", "learning_rate=0.05", listeners=[note])
    first = losses[0]
    for name in FILES:
        losses.clear()
        init = tmp_path / f"init-{name}"
        shutil.copyfile(tmp_path / "out" / name, init)
        over = ("lora_dropout=0", f"init_lora={init}", f"output_dir={tmp_path / 'next'}", "learning_rate=1e-9")
        train(config_file, *over, listeners=[note], restart=True)
        assert losses[0] != first
        kept = losses[0]
        losses.clear()
        train(config_file, *over, restart=True, listeners=[note])
        assert losses[0] == kept


def test_three_micro_batch_splits_give_equal_weights(config_file, tmp_path, monkeypatch):
    """Five steps in float64: the base, the pairs and the optimizer."""
    from lora_scripts import assembly
    from lora_scripts.train import precision

    monkeypatch.setitem(precision.DTYPES, "float32", "float64")
    inject = assembly.inject

    def inject_double(*arguments, **options):
        injected = inject(*arguments, **options)
        for layer in [layer for group in injected.layers.values() for layer in group.values()]:
            layer.lora_A.double()
            layer.lora_B.double()
        return injected

    monkeypatch.setattr(assembly, "inject", inject_double)
    results = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        out = tmp_path / f"split-{batch}"
        with pytest.raises(Stopped):
            train(
                config_file,
                f"batch_size={batch}",
                f"gradient_accumulation={accumulation}",
                f"output_dir={out}",
                "lora_dropout=0",
                listeners=[stop_at(5)],
            )
        results.append(load_file(out / "checkpoints" / "step-5" / "state.safetensors"))
    weights = [{k: v for k, v in result.items() if k.startswith("weight/")} for result in results]
    assert all(tensor.dtype == torch.float64 for tensor in weights[0].values()) and len(weights[0]) > 20
    for other in weights[1:]:
        assert max((weights[0][k] - other[k]).abs().max() for k in weights[0]) < 1e-10


NINE = """\
train_data_dir: "{pictures}"
metadata_path: "{pictures}/metadata.csv"
base_model: "{base}"
lora_rank: 8
batch_size: 4
epochs: 1
learning_rate: 2e-4
output_dir: "{out}"
save_steps: 100
"""


def test_the_nine_keys_with_a_single_file_offline(pictures, tmp_path, command):
    """The original layout, no network, nothing but the nine keys; the WebUI's line at the end."""
    base = tiny.tiny_single_file(tmp_path / "v1-5-pruned.safetensors", dtype=torch.float16)
    config = tmp_path / "my_lora_config.yaml"
    config.write_text(NINE.format(pictures=pictures, base=base, out=tmp_path / "my_style_lora"))
    done = command("train", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "<lora:my_style_lora:0.8>" in done.stdout and "models/Lora" in done.stdout
    assert done.stderr == ""
    assert (tmp_path / "my_style_lora" / "my_style_lora.safetensors").exists()
    record = json.loads((tmp_path / "my_style_lora" / "run.json").read_text())
    assert record["resolved"]["prediction_type"] == "epsilon" and record["resolved"]["gradient_accumulation"] == 1


@pytest.mark.slow
def test_the_nine_keys_with_a_file_of_full_size(pictures, tmp_path, command):
    from tests.families.test_sd import _write_full

    base = tmp_path / "v1-5-pruned.safetensors"
    _write_full(base)
    config = tmp_path / "my_lora_config.yaml"
    config.write_text(NINE.format(pictures=pictures, base=base, out=tmp_path / "full"))
    for number, picture in enumerate(sorted(pictures.glob("*.png"))):
        from PIL import Image

        Image.new("RGB", (128, 128), (40 * number, 90, 200)).save(picture)
    over = ["--set", "resolution=128", "--set", "preview=false", "--set", "batch_size=1"]
    done = command("train", "--config", config, *over, "--set", "lora_targets=attention")
    assert done.returncode == 0, done.stderr
    assert len(load_file(tmp_path / "full" / "full.safetensors")) == 3 * 128


def test_restart_forgets_nothing_before_it_can_replace_it(config_file, tmp_path):
    train(config_file)
    before = bytes_of(tmp_path / "out")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(BaseModelError):
        train(config_file, f"init_lora={tmp_path / 'broken.safetensors'}", restart=True)
    assert bytes_of(tmp_path / "out") == before
    assert not train(config_file, "name=other", restart=True).already
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {"other.safetensors", FILES[1]}


def test_a_checkpoint_without_its_record_is_not_ours(config_file, tmp_path):
    with pytest.raises(Stopped):
        train(config_file, listeners=[stop_at(3)])
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ConfigError, match="checkpoints"):
        train(config_file, restart=True)
    assert (tmp_path / "out" / "checkpoints" / "step-3").is_dir()
