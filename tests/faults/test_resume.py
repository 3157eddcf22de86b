"""F43-F53: the three ways of carrying on - exactly, with changes (`--continue`), from the weights alone (init_lora)."""

from __future__ import annotations

import importlib.abc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import app, continuing, identity, messages
from lora_scripts.cli import main
from lora_scripts.config.load import from_mapping
from lora_scripts.config.schema import RunConfig, free_keys
from lora_scripts.errors import CheckpointError, ConfigError, DataError, MachineError, Stopped
from lora_scripts.events import Command, Stepped
from lora_scripts.preparation import Prepared, prepare
from lora_scripts.train import checkpoint
from tests import tiny_text
from tests.faults import resuming

STEPS = 6


class Told(list[tuple[str, dict[str, Any]]]):
    """What a run says to a person."""

    def __call__(self, code: str, **params: Any) -> None:
        self.append((code, params))

    def changes(self) -> dict[str, tuple[Any, Any]]:
        return {row["key"]: (row["old"], row["new"]) for code, row in self if code == "train.continue_change"}

    def codes(self) -> list[str]:
        return [code for code, _ in self]


@pytest.fixture
def stopped(tmp_path: Path, text_base: Path) -> dict[str, Any]:
    """The settings of a run of six steps that was stopped after three; its last words stay loadable."""
    settings = resuming.text(tmp_path, text_base, steps=STEPS, save_steps=2, lora_rank=2)
    with pytest.raises(Stopped):
        app.train(from_mapping(settings), listeners=[resuming.stop_at(3)])
    return settings


def record_of(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(settings["output_dir"]) / "run.json").read_text())


def again(settings: dict[str, Any], choice: str | None = "", **values: Any) -> tuple[Told, list[Stepped]]:
    told, steps = Told(), []
    listen = lambda event: steps.append(event) if isinstance(event, Stepped) else None  # noqa: E731
    app.train(from_mapping({**settings, **values}), continued=choice, tell=told, listeners=[listen])
    return told, steps


def other_value(key: str, value: Any) -> Any:
    """Return an allowed value of a key that is not the one it has."""
    special: dict[str, Any] = {
        "lora_layers": [{"match": ".*q_proj", "rank": 1}],
        "adapter": "dora",
        "lora_targets": ".*q_proj",
        "optimizer": "lion",
        "schedule": "linear",
        "datasets": [{"path": "elsewhere"}],
        "resolution": [64],
        "mask": "alpha",
        "caption": {"trigger": "sks"},
        "missing_pictures": "ignore",
        "prediction_type": "epsilon",
        "train_text_encoder": True,
        "prior": "base",
        "loss": "huber",
        "train_on": "all",
        "labels": ["a", "b"],
        "base_precision": "bf16",
        "mixed_precision": "bf16",
        "attention": "math",
        "exporters": ["kohya"],
        "validation": {"share": 0.2},
        "preview": {"seed": 7},
        "not_finite": "skip",
        "warmup": "10%",
        "max_bad_fraction": 0.2,
    }
    if key in special:
        return special[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and value:
        return value * 2 if not isinstance(value, float) or value > 0.5 else value / 2
    field = str(RunConfig.model_fields[key].annotation)
    if "int" in field:
        return 9
    return 0.25 if "float" in field else "another"


EVERY_KEY = sorted(RunConfig.model_fields.keys() - identity.PATH_KEYS)


def test_f44_every_key_is_either_free_or_changeable_or_fixed_with_a_reason():
    fixed = continuing.FIXED.keys()
    assert fixed | continuing.CHANGEABLE | free_keys() | identity.PATH_KEYS == RunConfig.model_fields.keys()
    assert not fixed & continuing.CHANGEABLE and not (fixed | continuing.CHANGEABLE) & free_keys()


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    settings = {"train_data_dir": "a", "base_model": "embedded/pictures", "output_dir": "out"}
    facts = identity.config_facts(from_mapping(settings))
    return {"settings": settings, "record": {"config": facts, "data": {}, "base": {"hash": "x"}}}


@pytest.mark.parametrize("key", EVERY_KEY)
def test_f44_a_changed_key_is_refused_by_name_unless_it_is_free(key: str, known: dict[str, Any]):
    before = known["record"]["config"][key]
    now = RunConfig.model_validate({**known["settings"], key: other_value(key, before)})
    assert identity.config_facts(now)[key] != before, "the test changes nothing"
    if key in free_keys():
        identity.check_same(known["record"], now, [], "x")
        return
    with pytest.raises(ConfigError) as caught:
        identity.check_same(known["record"], now, [], "x")
    *problems, last = caught.value.problems
    assert {str(p.params["key"]).split(".")[0] for p in problems} == {key}
    assert last.code == "train.config_changed_remedy" and caught.value.exit_code == 2
    for word in ("undo", "--continue", "--restart", "init_lora"):
        assert word in str(caught.value)


def test_f44_how_many_keys_matter():
    matter = len(EVERY_KEY) - len(free_keys())
    assert matter == len(continuing.FIXED) + len(continuing.CHANGEABLE - identity.PATH_KEYS) >= 49
    assert len(free_keys()) >= 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text_base: Path) -> tuple[Prepared, dict[str, Any]]:
    """A prepared run and its record."""
    folder = tmp_path_factory.mktemp("whole")
    prepared = prepare(from_mapping(resuming.text(folder, text_base, steps=STEPS)))
    record = app._new_record(prepared, "hash") | {"state": "stopped"}
    return prepared, json.loads(json.dumps(record))


def compared(whole: tuple[Prepared, dict[str, Any]], key: str) -> continuing.Continued:
    prepared, record = whole
    value = other_value(key, identity.config_facts(prepared.config)[key])
    config = RunConfig.model_validate({**prepared.config.model_dump(), key: value})
    return continuing.compare(record, replace(prepared, config=config), "hash", "", 3)


@pytest.mark.parametrize("key", sorted(continuing.FIXED))
def test_f44_continue_refuses_what_the_weights_do_not_bear(key: str, whole):
    with pytest.raises(ConfigError) as caught:
        compared(whole, key)
    sentence = str(caught.value)
    assert messages.text(continuing.FIXED[key]) in sentence and f"{key}" in sentence
    assert "init_lora" in sentence and "--restart" in sentence and caught.value.exit_code == 2


@pytest.mark.parametrize("key", sorted(continuing.CHANGEABLE))
def test_f44_continue_takes_what_they_bear(key: str, whole):
    assert {row["key"].split(".")[0] for row in compared(whole, key).changes} == {key}


def test_f44_continue_refuses_another_base_and_another_step_size(whole):
    prepared, record = whole
    with pytest.raises(ConfigError, match="another base"):
        continuing.compare(record, prepared, "other", "", 3)
    larger = replace(prepared, plan=replace(prepared.plan, step_size=8))
    with pytest.raises(ConfigError, match="as many examples as before"):
        continuing.compare(record, larger, "hash", "", 3)


def test_f44_continue_tells_and_records_every_change(stopped: dict[str, Any]):
    """A rate, a clipping norm and a free key; afterwards the new config is the one that resumes exactly."""
    changed = {"learning_rate": 5e-3, "max_grad_norm": 0.5, "keep_checkpoints": 3}
    for key in changed:
        stopped.pop(key, None)
    told, heard = Told(), []

    def stop(event: Any) -> Command | None:
        if isinstance(event, Stepped):
            heard.append((event, len(told)))
            return Command.STOP if event.step == 5 else None
        return None

    with pytest.raises(Stopped):
        app.train(from_mapping({**stopped, **changed}), continued="", tell=told, listeners=[stop])
    assert told.changes() == {
        "keep_checkpoints": (None, 3),
        "learning_rate": (1e-2, 5e-3),
        "max_grad_norm": (1.0, 0.5),
    }
    first, said = heard[0]
    assert first.step == 4 and told.codes().index("train.continue_change") < said
    assert ("train.resuming", {"step": 3, "total": STEPS}) in told
    rows = [row for row in record_of(stopped)["changes"] if row["key"] in changed]
    assert {(row["step"], row["key"], row["old"], row["new"]) for row in rows} == {
        (3, "learning_rate", 1e-2, 5e-3),
        (3, "max_grad_norm", 1.0, 0.5),
        (3, "keep_checkpoints", None, 3),
    }
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.005"):
        again(stopped, None)
    told, steps = again(stopped, None, **changed)
    assert [event.step for event in steps] == [6] and not told.changes()
    assert len(record_of(stopped)["changes"]) == len(changed)


def test_f44_continue_without_a_change_is_exact(stopped: dict[str, Any], tmp_path: Path):
    told, _ = again(stopped)
    assert "train.continuing" not in told.codes() and "changes" not in record_of(stopped)
    through = {**stopped, "output_dir": str(tmp_path / "through" / "out")}
    app.train(from_mapping(through))
    assert resuming.digest(Path(stopped["output_dir"])) == resuming.digest(Path(through["output_dir"]))


def rates_over(settings: dict[str, Any], span: int, steps: range) -> list[float]:
    """The schedule of a run over so many steps, at steps counted from 1."""
    factor = continuing.scheduled(RunConfig.model_validate(record_of(settings)["config"]), span)
    return [1e-2 * factor(step - 1) for step in steps]


def rates_of(steps: list[Stepped]) -> list[float]:
    return [next(iter(event.rates.values())) for event in steps]


def test_f52_a_longer_run_must_say_what_becomes_of_the_schedule(stopped: dict[str, Any]):
    with pytest.raises(ConfigError) as caught:
        again(stopped, steps=10)
    sentence = str(caught.value)
    assert "planned for 6 steps and is planned for 10 now" in sentence
    assert "--continue=stretch" in sentence and "--continue=keep" in sentence and caught.value.exit_code == 2
    assert checkpoint.damage(Path(stopped["output_dir"]) / "checkpoints" / "step-3") is None


@pytest.mark.parametrize(("choice", "span"), [("stretch", 10), ("keep", 6)])
def test_f52_the_choice_is_recorded_and_holds_for_later_resumes(choice: str, span: int, stopped: dict[str, Any]):
    longer = {**stopped, "steps": 10}
    heard: list[Stepped] = []

    def stop(event: Any) -> Command | None:
        if isinstance(event, Stepped):
            heard.append(event)
            return Command.STOP if event.step == 7 else None
        return None

    told = Told()
    with pytest.raises(Stopped):
        app.train(from_mapping(longer), continued=choice, tell=told, listeners=[stop])
    assert "train.schedule_kept" in told.codes() if choice == "keep" else "train.schedule_stretched" in told.codes()
    row = next(row for row in record_of(stopped)["changes"] if row["key"] == "schedule_steps")
    assert row == {"step": 3, "key": "schedule_steps", "old": 6, "new": span, "choice": choice}
    _, steps = again(longer, None)
    assert [event.step for event in heard + steps] == list(range(4, 11))
    assert rates_of(heard + steps) == rates_over(stopped, span, range(4, 11))
    if choice == "keep":
        assert len(set(rates_of(heard + steps)[2:])) == 1


def test_f52_a_shorter_run_and_one_with_nothing_left(stopped: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"has done 3 steps of 3, so nothing is left"):
        again(stopped, "keep", steps=3)
    _, steps = again(stopped, "keep", steps=5)
    assert rates_of(steps) == rates_over(stopped, 6, range(4, 6))


@pytest.mark.parametrize(("rows", "counts"), [(7, (0, 1, 2)), (10, (2, 0, 2))])
def test_f44_continue_with_other_data_names_and_counts_them(
    rows: int, counts: tuple[int, ...], stopped: dict[str, Any]
):
    """One message with its answer is edited, and the last is gone or two more have come."""
    made = tiny_text.task_rows(rows)
    made[0]["message"] += " please"
    before = len(record_of(stopped)["data"])
    for row in made[8:]:
        row.pop("reply", None)
    tiny_text.write_rows(Path(stopped["train_data_dir"]), made)
    total = sum(counts) + (rows == 7)
    with pytest.raises(DataError, match=rf"{total} examples.*--continue.*--restart.*init_lora"):
        again(stopped, None)
    told, steps = again(stopped)
    data = next(params for code, params in told if code == "train.continue_data")
    removed = counts[1] + (rows == 7)
    assert (data["added"], data["removed"], data["edited"]) == (counts[0], removed, counts[2])
    assert data["examples"] == before + counts[0] - removed == len(record_of(stopped)["data"])
    assert len(data["names"].split(", ")) == total and [event.step for event in steps] == [4, 5, 6]
    assert record_of(stopped)["changes"][0]["new"]["edited"] == 2


def test_f44_continue_with_the_same_product_takes_other_micro_batches(tmp_path: Path, text_base: Path):
    settings = resuming.text(tmp_path, text_base, steps=STEPS, batch_size=1, gradient_accumulation=2)
    with pytest.raises(Stopped):
        app.train(from_mapping(settings), listeners=[resuming.stop_at(3)])
    again(settings, "", batch_size=2, gradient_accumulation=1)
    found = checkpoint.load(tmp_path / "out" / "checkpoints", STEPS)
    assert found.facts["micro_batch"][0] == 2
    assert {row["key"] for row in record_of(settings)["changes"]} == {"batch_size", "gradient_accumulation"}


def test_f50_other_versions_and_another_device_are_said_once(stopped: dict[str, Any]):
    """Both are recorded; the checkpoint of a GPU is read on the CPU (F51): generators have no state to restore."""
    path = Path(stopped["output_dir"]) / "run.json"
    record = json.loads(path.read_text())
    record["environment"] |= {"torch": "2.0.1+cu118", "device": "cuda", "a library of then": "1"}
    path.write_text(json.dumps(record))
    told = Told()
    with pytest.raises(Stopped):
        app.train(from_mapping(stopped), tell=told, listeners=[resuming.stop_at(4)])
    (said,) = [params for code, params in told if code == "train.other_surroundings"]
    assert said == {"before": "device cuda, torch 2.0.1+cu118", "now": f"device cpu, torch {torch.__version__}"}
    (row,) = record_of(stopped)["changes"]
    assert row["step"] == 3 and row["old"]["torch"] == "2.0.1+cu118" and row["new"]["torch"] == torch.__version__
    told, steps = again(stopped, None)
    assert "train.other_surroundings" not in told.codes() and len(steps) == 2


def test_f50_another_precision_is_allowed_and_warned_of(tmp_path: Path, text_base: Path):
    # Accelerate has one mixed precision for a process.
    stopped = resuming.text(tmp_path, text_base, steps=STEPS, mixed_precision="float32")
    with pytest.raises(Stopped):
        app.train(from_mapping(stopped), listeners=[resuming.stop_at(3)])
    told, steps = again(stopped, base_precision="bf16")
    assert told.changes() == {"base_precision": ("float32", "bf16")} and len(steps) == 3
    assert "train.continue_precision" in told.codes()
    (said,) = [params for code, params in told if code == "train.other_surroundings"]
    assert "base_precision float32" in said["before"] and "base_precision bfloat16" in said["now"]


class Without(importlib.abc.MetaPathFinder):
    """A finder that does not know one package."""

    def __init__(self, finder: Any, package: str):
        self.finder, self.package = finder, package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.split(".")[0] == self.package else self.finder.find_spec(name, path, target)


def test_f46_moments_of_8_bits_without_their_library(tmp_path: Path, text_base: Path, monkeypatch: pytest.MonkeyPatch):
    settings = resuming.text(tmp_path, text_base, steps=STEPS, **resuming.OPTIMIZERS["adamw8bit"])
    with pytest.raises(Stopped):
        app.train(from_mapping(settings), listeners=[resuming.stop_at(3)])
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "meta_path", [Without(finder, "bitsandbytes") for finder in sys.meta_path])
        told = Told()
        with pytest.raises(MachineError) as caught:
            app.train(from_mapping(settings), tell=told)
        assert (
            "adamw8bit" in str(caught.value) and "quantized" in str(caught.value) and "pip install" in str(caught.value)
        )
        assert caught.value.exit_code == 4 and not told
    _, steps = again(settings, None)
    assert [event.step for event in steps] == [4, 5, 6]


def test_f43_a_finished_run_is_already_complete(tmp_path: Path, text_base: Path, command):
    settings = resuming.text(tmp_path, text_base, steps=4)
    first = command("train", settings)
    before = resuming.digest(tmp_path / "out")
    for words in ((), ("--continue",)):
        answer = command("train", settings, *words)
        assert (first.code, answer.code) == (0, 0) and "already complete at step 4" in answer.out
    assert resuming.digest(tmp_path / "out") == before
    refused = command("train", {**settings, "learning_rate": 1e-3}, "--continue")
    assert refused.code == 2 and "has done 4 steps of 4" in refused.error
    longer = command("train", {**settings, "steps": 6}, "--continue=stretch")
    assert longer.code == 0 and "steps: 4 -> 6" in longer.out and "Resuming at step 4 of 6" in longer.out
    assert resuming.digest(tmp_path / "out") != before


def test_f44_the_command_line_has_the_three_ways(stopped: dict[str, Any], command, capfd: pytest.CaptureFixture[str]):
    out = stopped["output_dir"]
    exact = command("train", {**stopped, "learning_rate": 2e-3})
    assert exact.code == 2 and "learning_rate was 0.01 when this run started and is 0.002 now" in exact.error
    for words in (("--continue", "--restart"), ("--continue=longer",)):
        with pytest.raises(SystemExit) as caught:
            command("train", stopped, *words)
        assert caught.value.code == 2
    said = capfd.readouterr().err
    assert "not allowed with argument" in said and "invalid choice: 'longer'" in said and "'stretch', 'keep'" in said
    tiny_text.write_rows(Path(stopped["train_data_dir"]), tiny_text.task_rows(9))
    assert main(["resume", out]) == 3
    assert main(["resume", out, "--continue"]) == 0
    said = capfd.readouterr().out
    assert "2 examples added, 0 removed, 0 edited" in said and "Resuming at step 3" in said


def test_f44_the_third_way_takes_the_weights_alone(stopped: dict[str, Any], tmp_path: Path):
    """What is refused with --continue can be had from step 0 in another folder, from this run's LoRA."""
    saved = tmp_path / "out" / "checkpoints" / "step-3"
    (lora,) = [path for path in saved.glob("*.safetensors") if path.name != checkpoint.STATE]
    anew = {**stopped, "output_dir": str(tmp_path / "anew" / "out"), "optimizer": "lion", "init_lora": str(lora)}
    with pytest.raises(ConfigError, match=r"(?s)optimizer\.name.*init_lora"):
        again(stopped, optimizer="lion")
    _, steps = again({**anew, "learning_rate": 1e-9, "lora_dropout": 0}, None)
    assert [event.step for event in steps] == list(range(1, STEPS + 1))
    before, after = load_file(lora), load_file(tmp_path / "anew" / "out" / lora.name)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_f53_a_checkpoint_that_cannot_be_read_leaves_the_record_as_it_was(stopped: dict[str, Any]):
    saves = Path(stopped["output_dir"]) / "checkpoints"
    found = checkpoint.load(saves, 3)
    lost = next(name for name in found.tensors if name.startswith("weight/"))
    tensors = {name: tensor for name, tensor in found.tensors.items() if name != lost}
    checkpoint.write(saves, replace(found, tensors=tensors), lambda staged: None)
    with pytest.raises(CheckpointError) as caught:
        again(stopped, learning_rate=1e-3)
    assert lost.removeprefix("weight/") in str(caught.value) and caught.value.exit_code == 3
    record = record_of(stopped)
    assert record["config"]["learning_rate"] == 1e-2 and "changes" not in record
    assert not [path.name for path in saves.iterdir() if path.name.startswith(".")]
