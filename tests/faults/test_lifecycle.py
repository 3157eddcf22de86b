"""Signals, kills and requests of other processes, sent to real trainings on a tiny base."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

if not hasattr(os, "fork"):
    pytest.skip("processes are started by fork", allow_module_level=True)

from lora_scripts import app, run_states
from lora_scripts.config.load import from_mapping
from lora_scripts.errors import ConfigError
from lora_scripts.runs import RunFolder
from lora_scripts.train import checkpoint
from lora_scripts.train.listeners.signals import Signals
from tests import tiny
from tests.faults.run_in_child import child, events_of
from tests.faults.short_run import FILES, settings

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("lifecycle")
    tiny.tiny_pictures(folder / "pictures", 6)
    return folder


def values(folder: Path, out: Path, base: Path, **more: Any) -> dict[str, Any]:
    return settings(folder, base, out, **{"steps": STEPS, "save_steps": 4} | more)


@pytest.fixture(scope="module")
def expected(folder: Path, base_folder: Path) -> list[bytes]:
    """The files of a run that was never interrupted; made here, so that the children's cache is full too."""
    outcome = app.train(from_mapping(values(folder, folder / "whole", base_folder)))
    return [(outcome.folder / name).read_bytes() for name in FILES]


@pytest.fixture
def config(tmp_path: Path, folder: Path, base_folder: Path, expected: list[bytes]) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values(folder, tmp_path / "out", base_folder)))
    return path


def slow(step: int, seconds: float = 0.5):
    """Make the child wait inside a step, so that a signal falls into it; it says so by a file."""

    def change() -> None:
        from lora_scripts.train.loop import Trainer

        true_step = Trainer.step

        def taken(self, micro_batches):
            if self.done + 1 == step:
                Path("inside").write_text("")
                time.sleep(seconds)
            return true_step(self, micro_batches)

        Trainer.step = taken

    return change


def inside(config: Path) -> bool:
    return (config.parent / "inside").exists()


def same_again(config: Path, expected: list[bytes]) -> str:
    """Run the same command to its end; return what it said."""
    with child(config, config.parent / "out") as again:
        assert again.wait() == 0, again.text()
        said = again.text()
    assert [(config.parent / "out" / name).read_bytes() for name in FILES] == expected
    assert not list((config.parent / "out").rglob(".staged-*")) + list((config.parent / "out").rglob(".aside-*"))
    return said


def test_f01_kill_9_inside_a_step_loses_no_more_than_the_save_interval(config, expected):
    with child(config, config.parent / "out", before=slow(7)) as run:
        run.until(lambda: inside(config))
        run.send(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    assert run_states.look(config.parent / "out").state == "interrupted"
    assert "Resuming at step 4 of 12" in same_again(config, expected)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_f08_f10_a_signal_inside_a_step_saves_that_step(config, expected, name, code):
    with child(config, config.parent / "out", before=slow(6)) as run:
        run.until(lambda: inside(config))
        run.send(getattr(signal, name))
        assert run.wait() == code
        assert f"{name}: finishing this step" in run.text() and "Stopped at step 6 of 12" in run.text()
    assert checkpoint.steps(config.parent / "out/checkpoints")[-1] == 6
    assert run_states.look(config.parent / "out").state == "stopped"
    assert "Resuming at step 6 of 12" in same_again(config, expected)


def test_f09_a_signal_during_a_save_makes_no_second_one(config, expected):
    def change() -> None:
        true_write = checkpoint.write

        def write(folder, state, add_files):
            if state.step == 4:
                Path("inside").write_text("")
                time.sleep(0.5)
            return true_write(folder, state, add_files)

        checkpoint.write = write

    with child(config, config.parent / "out", before=change) as run:
        run.until(lambda: inside(config))
        run.send(signal.SIGTERM)
        assert run.wait() == 143
    saved = [row["step"] for row in events_of(config.parent / "out") if row["event"] == "Saved"]
    assert saved == [4] and "Resuming at step 4" in same_again(config, expected)


def test_f10_a_second_ctrl_c_quits_at_once_with_whole_files(config, expected):
    with child(config, config.parent / "out", before=slow(6, 60)) as run:
        run.until(lambda: inside(config))
        run.send(signal.SIGINT)
        run.until(lambda: "finishing this step" in run.text())
        began = time.monotonic()
        run.send(signal.SIGINT)
        assert run.wait() == 130 and time.monotonic() - began < 10
        assert "Traceback" not in run.text()
    assert checkpoint.steps(config.parent / "out/checkpoints") == [4]
    same_again(config, expected)


@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 75), ("SIGHUP", 129)])
def test_f12_f13_a_batch_system_or_a_closed_terminal_saves(config, expected, name, code):
    with child(config, config.parent / "out", before=slow(6)) as run:
        run.until(lambda: inside(config))
        run.send(getattr(signal, name))
        assert run.wait() == code
    assert checkpoint.steps(config.parent / "out/checkpoints")[-1] == 6
    same_again(config, expected)


def test_f13_a_run_started_to_survive_its_terminal_does_not_hear_it(config, expected):
    def change() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        slow(6)()

    with child(config, config.parent / "out", before=change) as run:
        run.until(lambda: inside(config))
        run.send(signal.SIGHUP)
        assert run.wait() == 0
    assert [(config.parent / "out" / name).read_bytes() for name in FILES] == expected


def test_f14_a_stopped_process_goes_on_where_it_was(config, expected):
    with child(config, config.parent / "out", before=slow(6, 0.2)) as run:
        run.until(lambda: inside(config))
        run.send(signal.SIGSTOP)
        time.sleep(1)
        step = run.step()
        time.sleep(0.3)
        assert run.step() == step
        run.send(signal.SIGCONT)
        assert run.wait() == 0
    assert [(config.parent / "out" / name).read_bytes() for name in FILES] == expected


def test_f15_a_grace_that_is_too_short_costs_one_interval(config, expected):
    with child(config, config.parent / "out", before=slow(7, 60)) as run:
        run.until(lambda: inside(config))
        run.send(signal.SIGTERM)
        time.sleep(0.2)
        run.send(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    assert "Resuming at step 4" in same_again(config, expected)


def test_f16_the_newest_checkpoint_is_chosen_by_its_step_not_its_time(config, expected):
    with child(config, config.parent / "out", before=slow(10)) as run:
        run.until(lambda: inside(config))
        run.send(signal.SIGKILL)
        run.wait()
    folder = config.parent / "out/checkpoints"
    tomorrow = time.time() + 86400
    for path in [folder / "step-4", *(folder / "step-4").iterdir()]:
        os.utime(path, (tomorrow, tomorrow))
    assert "Resuming at step 8" in same_again(config, expected)


def test_stop_save_and_preview_are_asked_for_from_outside(config, expected, capsys):
    from lora_scripts.cli import main

    out = config.parent / "out"
    with child(config, out, before=every_step(0.05)) as run:
        run.until(lambda: run.step() >= 2)
        assert main(["save-now", str(out)]) == 0
        asked = checkpoint.steps(out / "checkpoints")
        assert (asked and asked[0] not in (4, 8, 12)) or asked == [4]
        assert main(["runs", str(out.parent)]) == 0
        printed = capsys.readouterr().out
        assert f"Saved step {asked[0]}" in printed and "running, step" in printed and str(run.pid) in printed
        assert main(["stop", str(out)]) == 0
        assert "Stopped at step" in capsys.readouterr().out
        assert run.wait() == 130
    assert main(["runs", str(out)]) == 0
    assert "stopped at step" in capsys.readouterr().out
    for verb in ("stop", "save-now", "preview-now"):
        assert main([verb, str(out)]) == 2
        assert "not going on (stopped" in capsys.readouterr().err
    assert not list((out / "control").iterdir())
    same_again(config, expected)


def every_step(seconds: float):
    def change() -> None:
        from lora_scripts.train.loop import Trainer

        true_step = Trainer.step
        Trainer.step = lambda self, batches: time.sleep(seconds) or true_step(self, batches)

    return change


def test_preview_now_draws_between_two_saves(tmp_path, folder, base_folder, expected, capsys):
    from lora_scripts.cli import main

    path, out = tmp_path / "run.yaml", tmp_path / "out"
    preview = {"prompts": ["a thing"], "steps": 1}
    path.write_text(json.dumps(values(folder, out, base_folder, preview=preview, save_steps=100)))
    with child(path, out, before=every_step(0.1)) as run:
        run.until(lambda: run.step() >= 1)
        assert main(["preview-now", str(out)]) == 0
        drawn = [row for row in run.events() if row["event"] == "Previewed"]
        assert len(drawn) == 1 and Path(drawn[0]["path"]).exists() and drawn[0]["step"] < STEPS
        assert run.wait() == 0


def test_resume_carries_on_from_the_folder_alone(config, expected, monkeypatch, capsys):
    from lora_scripts.cli import main

    out = config.parent / "out"
    with child(config, out, before=slow(6)) as run:
        run.until(lambda: inside(config))
        run.send(signal.SIGTERM)
        run.wait()
    config.unlink()
    monkeypatch.chdir("/")
    assert main(["resume", str(out)]) == 0
    assert "Resuming at step 6 of 12" in capsys.readouterr().out
    assert [(out / name).read_bytes() for name in FILES] == expected
    assert main(["resume", str(out)]) == 0
    assert "already complete at step 12" in capsys.readouterr().out
    assert main(["resume", str(out.parent)]) == 2


def test_every_state_of_a_run_is_told(tmp_path, capsys):
    """From records as they are left behind, without a process that holds the folder."""
    from lora_scripts.cli import main

    base = {"schema": 1, "config": {}, "data": {}, "base": {}, "resolved": {"steps": 9}}
    for state in ("finished", "stopped", "failed", "running"):
        record = base | {"state": state, "sessions": [{"started": 1.0, "step": 5}], "error": "no space"}
        (tmp_path / state).mkdir()
        (tmp_path / state / "run.json").write_text(json.dumps(record))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/run.json").write_text("{")
    (tmp_path / "other").mkdir()
    states = {run.path.name: run.state for run in run_states.find(tmp_path)}
    assert states == {
        "finished": "finished",
        "stopped": "stopped",
        "failed": "failed",
        "running": "interrupted",
        "torn": "unreadable",
    }
    assert main(["runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "failed at step 5 of 9: no space" in said and "interrupted at step" in said
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 5
    with pytest.raises(ConfigError, match="no run"):
        run_states.find(tmp_path / "other")
    assert main(["runs", str(tmp_path / "absent")]) == 2


def test_f34_f35_a_folder_in_use_is_refused_and_a_dead_owner_is_not(config, expected):
    out = config.parent / "out"
    with child(config, out, before=slow(6, 60)) as run:
        run.until(lambda: inside(config))
        with child(config, out) as second:
            assert second.wait() == 6
            assert f"process {run.pid}" in second.text()
        assert RunFolder(out).owner()["pid"] == run.pid
        run.send(signal.SIGKILL)
        run.wait()
    assert RunFolder(out).owner() is None and (out / ".lock").exists()
    same_again(config, expected)


def test_signals_are_put_back_where_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    from lora_scripts.events import Finished, Started

    signals = Signals()
    signals(Started(0, 1, 1))
    assert signal.getsignal(signal.SIGTERM) == signals._heard
    signals(Finished(1, 2, True))
    assert signal.getsignal(signal.SIGTERM) == signals._heard
    signals(Finished(1, 1, False))
    assert {number: signal.getsignal(number) for number in before} == before
