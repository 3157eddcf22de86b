"""Kills at every point of a save, and checkpoints that are damaged afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

if not hasattr(os, "fork"):
    pytest.skip("processes are started by fork", allow_module_level=True)

import torch

from lora_scripts import app, files
from lora_scripts.config.load import from_mapping
from lora_scripts.errors import CheckpointError, MachineError, Stopped
from lora_scripts.events import Advised, Command, Stepped
from lora_scripts.runs import RunFolder
from lora_scripts.train import checkpoint
from lora_scripts.train.checkpoint import State
from tests import tiny
from tests.faults.harm import (
    after_tensors,
    before_rename,
    break_manifest,
    cut_three_bytes,
    die,
    flip,
    flip_lora,
    foreign_manifest,
    forked,
    in_export,
    in_removal,
    in_tensors,
    lose_manifest,
    lose_state,
    nest_manifest,
    save_for_ever,
    truncate,
)
from tests.faults.run_in_child import child
from tests.faults.short_run import FILES, settings

STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.tiny_pictures(folder / "pictures", 4)
    return folder


def values(folder: Path, out: Path, base: Path, **more: Any) -> dict[str, Any]:
    return settings(folder, base, out, **{"steps": STEPS, "save_steps": 2} | more)


@pytest.fixture(scope="module")
def expected(folder: Path, base_folder: Path) -> list[str]:
    """The sha256 of the files of a run that was never interrupted; it fills the children's cache too."""
    app.train(from_mapping(values(folder, folder / "whole", base_folder)))
    return results(folder / "whole")


@pytest.fixture(scope="module")
def stopped(folder: Path, base_folder: Path, expected: list[str]) -> Path:
    """A run that was stopped at step 7, with checkpoints at 2, 4, 6 and 7."""

    def stop(event: Any) -> Command | None:
        return Command.STOP if isinstance(event, Stepped) and event.step == 7 else None

    with pytest.raises(Stopped):
        app.train(from_mapping(values(folder, folder / "stopped", base_folder)), listeners=[stop])
    return folder / "stopped"


@pytest.fixture
def run(stopped: Path, folder: Path, base_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """The settings of a copy of the stopped run."""
    shutil.copytree(stopped, tmp_path / "out")
    return values(folder, tmp_path / "out", base_folder)


@pytest.fixture
def config(tmp_path: Path, folder: Path, base_folder: Path, expected: list[str]) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values(folder, tmp_path / "out", base_folder)))
    return path


def results(out: Path) -> list[str]:
    return [files.sha256_of(out / name) for name in FILES]


def stray(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.name != ".lock"]


def newest(out: Path) -> int:
    found = checkpoint.load_newest(out / "checkpoints", lambda code, params: pytest.fail(code))
    assert found is not None
    return found.step


def train(settings: dict[str, Any], *listeners: Any, **how: Any) -> list[tuple[str, dict[str, Any]]]:
    """Train in this process; return what was said."""
    said: list[tuple[str, dict[str, Any]]] = []
    app.train(
        from_mapping(settings), listeners=listeners, tell=lambda code, **params: said.append((code, params)), **how
    )
    return said


SAVES = {"F02 inside tensors": in_tensors, "F02 after tensors": after_tensors, "F03 before rename": before_rename}


@pytest.mark.parametrize("point", SAVES, ids=[name.replace(" ", "_") for name in SAVES])
def test_f02_f03_a_kill_inside_a_save_leaves_the_one_before(config, expected, point):
    out = config.parent / "out"
    with child(config, out, before=SAVES[point]) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert checkpoint.steps(out / "checkpoints") == [2, 4] and newest(out) == 4
    assert (out / "checkpoints/.staged-step-6").is_dir()
    with child(config, out) as again:
        assert again.wait() == 0, again.text()
        said = again.text()
    assert "Ignored the incomplete save of step 6" in said and "Resuming at step 4 of 8" in said
    assert results(out) == expected and newest(out) == STEPS and not stray(out)


def test_f04_a_kill_between_setting_aside_and_renaming_gives_the_old_one_back(run, expected, tmp_path):
    """The same step is written again where a run went back behind it."""
    saves = tmp_path / "out/checkpoints"
    before = (saves / "step-6" / "manifest.json").read_bytes()
    shutil.rmtree(saves / "step-7")
    state = checkpoint.load(saves, 6)

    def again() -> None:
        true_replace = os.replace

        def replace(source: Any, target: Any) -> None:
            if Path(target).name == "step-6":
                die()
            true_replace(source, target)

        os.replace = replace
        checkpoint.write(saves, state, lambda staged: None)

    assert forked(again) == -signal.SIGKILL
    assert {path.name for path in saves.glob(".*")} == {".aside-step-6", ".staged-step-6"}
    said = train(run)
    assert ("train.save_put_back", {"step": "6"}) in said and ("train.save_ignored", {"step": "6"}) in said
    assert ("train.resuming", {"step": 6, "total": STEPS}) in said
    assert (saves / "step-6" / "manifest.json").read_bytes() == before
    assert results(tmp_path / "out") == expected and not stray(tmp_path / "out")


def test_f04_a_rename_that_fails_gives_the_old_one_back_at_once(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, State(5, {"weight/a": torch.ones(3)}, {"old": True}), lambda staged: None)
    true_replace = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(source).name == ".staged-step-5":
            raise OSError(5, "Input/output error")
        true_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(MachineError, match="Input/output error"):
        checkpoint.write(tmp_path, State(5, {"weight/a": torch.zeros(3)}, {}), lambda staged: None)
    assert checkpoint.load(tmp_path, 5).facts == {"old": True} and not list(tmp_path.glob(".*"))


def test_f05_a_kill_inside_a_removal_costs_no_other_checkpoint(config, expected):
    out = config.parent / "out"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"keep_checkpoints": 1}))
    with child(config, out, before=in_removal) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert checkpoint.folders(out / "checkpoints") == [6] and newest(out) == 6
    assert (out / "checkpoints/.pruned-step-4").is_dir()
    with child(config, out) as again:
        assert again.wait() == 0, again.text()
        assert "Resuming at step 6 of 8" in again.text()
    # 6 is what this run began from, and the only older one.
    assert results(out) == expected and checkpoint.folders(out / "checkpoints") == [6, 8] and not stray(out)


def test_f06_a_kill_inside_the_export_leaves_no_half_file(config, expected):
    out = config.parent / "out"
    with child(config, out, before=in_export) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert not (out / FILES[0]).exists() and newest(out) == STEPS
    assert [path for path in stray(out) if path.name.endswith(FILES[0])]
    with child(config, out) as again:
        assert again.wait() == 0, again.text()
        assert "Resuming at step 8 of 8" in again.text()
    assert results(out) == expected and not stray(out)


def test_f06_a_kill_inside_an_export_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / FILES[0]
    files.write_bytes(path, b"old")
    assert forked(lambda: (in_export(), files.write_bytes(path, b"new"))) == -signal.SIGKILL
    assert path.read_bytes() == b"old" and len(stray(tmp_path)) == 1
    RunFolder(tmp_path).sweep()
    assert not stray(tmp_path)


def test_f35_a_lock_left_by_a_killed_run_is_taken_over_with_a_word(run, expected, tmp_path):
    out = RunFolder(tmp_path / "out")
    owner = {"pid": 4242, "host": "elsewhere", "since": "2026-01-01 00:00:00"}
    (out.path / ".lock").write_text(json.dumps(owner))
    said = train(run)
    assert ("train.lock_taken", {"path": out.path, **owner}) in said
    assert "elsewhere" in out.log_path.read_text() and results(out.path) == expected
    # A run that ends lets go: nothing to tell the next time.
    assert (out.path / ".lock").read_text() == ""
    assert not [code for code, _ in train(run, restart=True) if code == "train.lock_taken"]


# ---- kills at random moments


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_f02_f05_kills_at_random_moments_of_saves_leave_a_loadable_checkpoint_every_time(tmp_path, kills):
    moments, last, cut = random.Random(7), 0, 0
    for _ in range(kills):
        receive, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                save_for_ever(tmp_path, last + 1, report)
            os._exit(99)
        os.close(report)
        assert select.select([receive], [], [], 30)[0], "no save was finished"
        time.sleep(moments.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with os.fdopen(receive) as told:
            done = int(told.read().splitlines()[-1])
        cut += len(list(tmp_path.glob(".*")))
        checkpoint.sweep(tmp_path)
        assert not list(tmp_path.glob(".*"))
        state = checkpoint.load_newest(tmp_path, lambda code, params: pytest.fail(f"{code} {params}"))
        assert state is not None and state.step >= done and state.facts == {"note": state.step}
        assert all(bool((tensor == state.step).all()) for tensor in state.tensors.values())
        assert len(checkpoint.folders(tmp_path)) <= 4
        last = state.step
    assert cut >= kills // 5, "the kills did not fall into saves"


# ---- damage


DAMAGES = {
    truncate: "state.safetensors: 46.2 KiB of 184.8 KiB",
    cut_three_bytes: "state.safetensors: 189,269 B of 189,272 B",
    flip: "state.safetensors: other sha256 than when it was saved",
    flip_lora: "x-step-7.safetensors: other sha256 than when it was saved",
    lose_state: "state.safetensors: 0 B of 184.8 KiB",
    lose_manifest: "manifest.json: absent",
    break_manifest: "manifest.json: not readable",
    nest_manifest: "manifest.json: not readable",
    foreign_manifest: "manifest.json: not readable",
}
IDS = {truncate: "f30", cut_three_bytes: "f30", flip: "f31", flip_lora: "f31", lose_state: "f30"}


@pytest.mark.parametrize("harm", DAMAGES, ids=[f"{IDS.get(h, 'f32')}_{h.__name__}" for h in DAMAGES])
def test_f30_f31_f32_a_damaged_newest_gives_way_to_the_older_with_the_reason(run, tmp_path, harm):
    saves = tmp_path / "out/checkpoints"
    harm(saves / "step-7")
    told: list[tuple[str, dict[str, Any]]] = []
    state = checkpoint.load_newest(saves, lambda code, params: told.append((code, dict(params))))
    assert state is not None and state.step == 6
    assert told == [("train.checkpoint_damaged", {"step": 7, "reason": DAMAGES[harm], "used": 6})]


@pytest.mark.parametrize("harm", [truncate, lose_manifest])
def test_f30_f32_a_run_goes_on_from_the_older_and_ends_alike(run, expected, command, tmp_path, harm):
    out = tmp_path / "out"
    harm(out / "checkpoints/step-7")
    answer = command("train", run)
    assert answer.code == 0 and "Resuming at step 6 of 8" in answer.out
    assert f"The checkpoint of step 7 is damaged ({DAMAGES[harm]}); using that of step 6." in answer.out
    assert results(out) == expected and newest(out) == STEPS and not stray(out)


def test_f30_a_damaged_newer_one_does_not_push_out_whole_ones(run, expected, tmp_path):
    out = tmp_path / "out"
    for step in (6, 7):
        flip(out / f"checkpoints/step-{step}")
    seen: list[list[int]] = []

    def look(event: Any) -> None:
        if isinstance(event, Stepped):
            seen.append(checkpoint.steps(out / "checkpoints"))

    said = train(run | {"keep_checkpoints": 1, "save_steps": 1}, look)
    damaged = [params for code, params in said if code == "train.checkpoint_damaged"]
    assert [(row["step"], row["used"]) for row in damaged] == [(7, 4), (6, 4)]
    # After step 5 was saved: 4, which this run began from, and 5; 6 and 7 are no reason to remove either.
    assert seen[1] == [4, 5, 6, 7] and results(out) == expected and newest(out) == STEPS


def test_f32_a_newer_version_is_refused_in_words(run, command, contents, tmp_path):
    path = tmp_path / "out/checkpoints/step-7/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": checkpoint.SCHEMA_VERSION + 1}))
    before = contents(tmp_path / "out/checkpoints")
    answer = command("train", run)
    assert answer.code == 3 and "newer version (format 3, this one reads up to 2)" in answer.error
    assert contents(tmp_path / "out/checkpoints") == before


@pytest.mark.parametrize(
    "harms", [(flip, truncate, lose_state, break_manifest), (lose_manifest,) * 4], ids=["mixed", "no_manifest"]
)
def test_f33_all_damaged_is_refused_with_what_was_tried_and_nothing_is_touched(
    run, expected, command, contents, tmp_path, harms
):
    saves = tmp_path / "out/checkpoints"
    for step, harm in zip((2, 4, 6, 7), harms, strict=True):
        harm(saves / f"step-{step}")
    before = contents(saves)
    answer = command("train", run)
    assert answer.code == 3 and "--restart" in answer.error and len(answer.error.splitlines()) == 1
    assert all(f"{step}: " in answer.error for step in (2, 4, 6, 7)) and "manifest.json" in answer.error
    assert contents(saves) == before and not (tmp_path / "out" / FILES[0]).exists()
    answer = command("train", run, "--restart")
    assert answer.code == 0 and results(tmp_path / "out") == expected and newest(tmp_path / "out") == STEPS


def test_f33_the_cases_are_all():
    assert len(DAMAGES) == 9 and len(SAVES) == 3


# ---- which stay


def put(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.write(folder, State(step, {"weight/a": torch.full((3,), float(step))}, {}), lambda staged: None)


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({"keep": None}, list(range(1, 11))),
        ({"keep": 1}, [10]),
        ({"keep": 20}, list(range(1, 11))),
        ({"keep": 2, "every": 4}, [4, 8, 9, 10]),
        ({"keep": 2, "every": 5}, [5, 9, 10]),
        ({"keep": 1, "best": 3}, [3, 10]),
        ({"keep": 1, "best": 3, "every": 4}, [3, 4, 8, 10]),
        ({"keep": 1, "newest": 6}, [6, 7, 8, 9, 10]),
        ({"keep": 1, "resumed": 9}, [9, 10]),
        ({"keep": 1, "resumed": 8}, [10]),
    ],
)
def test_f05_which_checkpoints_stay(tmp_path, rules, left):
    put(tmp_path, *range(1, 11))
    assert checkpoint.prune(tmp_path, **rules) == []
    assert checkpoint.folders(tmp_path) == left and not list(tmp_path.glob(".*"))


def test_f05_what_was_resumed_from_stays_until_the_run_has_saved_twice(tmp_path):
    put(tmp_path, 2, 4, 5)
    checkpoint.prune(tmp_path, 1, newest=5, resumed=4)
    assert checkpoint.steps(tmp_path) == [4, 5]
    put(tmp_path, 6)
    checkpoint.prune(tmp_path, 1, newest=6, resumed=4)
    assert checkpoint.steps(tmp_path) == [6]


def test_f05_keep_every_is_a_key_that_a_resumed_run_may_change(run, expected, tmp_path):
    train(run | {"keep_checkpoints": 1, "keep_every": 4})
    out = tmp_path / "out"
    # 7 is what this run began from.
    assert results(out) == expected and checkpoint.steps(out / "checkpoints") == [4, 7, 8] and not stray(out)


def test_f05_a_checkpoint_that_cannot_be_removed_is_told_once(run, expected, tmp_path, monkeypatch):
    true_replace, events = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(target).name.startswith(".pruned-"):
            raise OSError(13, "Permission denied")
        true_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    train(run | {"keep_checkpoints": 1}, events.append, restart=True)
    told = [event for event in events if isinstance(event, Advised)]
    assert [event.code for event in told] == ["train.prune_failed"] and told[0].params["reason"] == "Permission denied"
    out = tmp_path / "out"
    assert results(out) == expected and checkpoint.steps(out / "checkpoints") == [2, 4, 6, 8] and not stray(out)


def test_f25_what_does_not_read_back_gets_no_name_and_removes_nothing(run, expected, tmp_path, monkeypatch):
    """A disk that keeps something else than what was written."""
    true_flush, events = checkpoint._flush, []

    def flush(path: Path) -> bool:
        if path.parent.name == ".staged-step-4" and path.name == "state.safetensors":
            flip(path.parent)
        return true_flush(path)

    monkeypatch.setattr(checkpoint, "_flush", flush)
    there: dict[int, list[int]] = {}

    def look(event: Any) -> None:
        if isinstance(event, Stepped):
            there[event.step] = checkpoint.steps(tmp_path / "out/checkpoints")

    train(run | {"keep_checkpoints": 1}, events.append, look, restart=True)
    failed = [event for event in events if isinstance(event, Advised)]
    assert [event.code for event in failed] == ["train.save_failed"] and failed[0].params["step"] == 4
    assert "other sha256 than when it was saved" in str(failed[0].params["reason"])
    out = tmp_path / "out"
    assert there[5] == [2] and results(out) == expected and newest(out) == STEPS and not stray(out)


def test_f30_a_checkpoint_of_one_step_that_is_damaged_is_refused_by_its_step(run, tmp_path):
    flip(tmp_path / "out/checkpoints/step-4")
    with pytest.raises(CheckpointError, match="step 4"):
        checkpoint.load(tmp_path / "out/checkpoints", 4)
