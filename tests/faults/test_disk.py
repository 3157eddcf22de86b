"""Full, failing and read-only disks: real small file systems where the machine lets a test mount one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_scripts import app, files
from lora_scripts.config.load import from_mapping
from lora_scripts.errors import MachineError
from lora_scripts.events import Advised, Stepped
from lora_scripts.runs import RunFolder
from lora_scripts.train import checkpoint, disk, loader
from tests import tiny
from tests.faults.short_run import FILES, settings
from tests.faults.small_disk import MS_REMOUNT, Inside, on_small_disk, read_only

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    tiny.tiny_pictures(folder / "pictures", 6)
    return folder


@pytest.fixture
def values(folder: Path, base_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Twelve steps, saved at every second; the output folder is on the small disk, where there is one."""
    (tmp_path / "small").mkdir()
    return settings(folder, base_folder, tmp_path / "small/out", steps=STEPS, save_steps=2, keep_checkpoints=1)


@pytest.fixture(scope="module")
def expected(folder: Path, base_folder: Path) -> list[str]:
    """The sha256 of the files of a run that was never disturbed; made here, so that the cache is full too."""
    out = folder / "whole"
    app.train(from_mapping(settings(folder, base_folder, out, steps=STEPS, save_steps=2)))
    return results(out)


def results(out: Path) -> list[str]:
    return [files.sha256_of(out / name) for name in FILES]


def stray(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.name != ".lock"]


def newest(out: Path) -> int:
    found = checkpoint.load_newest(out / "checkpoints", lambda code, params: pytest.fail(code))
    assert found is not None
    return found.step


def train(values: dict[str, Any], listener: Callable[[Any], None] = lambda event: None) -> tuple[list[Any], list[str]]:
    """Train in this process; return the events and the codes of what was said."""
    events: list[Any] = []
    said: list[str] = []

    def listen(event: Any) -> None:
        events.append(event)
        listener(event)

    try:
        app.train(from_mapping(values), listeners=[listen], tell=lambda code, **params: said.append(code))
    except MachineError as error:
        error.events, error.said = events, said  # type: ignore[attr-defined]
        raise
    return events, said


def advised(events: list[Any], code: str) -> list[dict[str, Any]]:
    return [dict(event.params) for event in events if isinstance(event, Advised) and event.code == code]


def test_f20_too_little_room_is_refused_before_the_first_step_with_the_bytes(values, expected, tmp_path):
    def act(here: Inside) -> None:
        here.fill(leave=450 << 10)
        code, said, events = here.train()
        assert code == 4 and not [event for event in events if isinstance(event, Stepped)]
        assert "The run needs about 5" in said and "KiB are free" in said and str(here.out / "checkpoints") in said
        here.free()
        here.fill(leave=60 << 10)
        code, said, events = here.train()
        assert code == 4 and not [event for event in events if isinstance(event, Stepped)], said
        assert "are needed and" in said or "no space left" in said
        assert not checkpoint.folders(here.out / "checkpoints") and not stray(here.out)
        here.free()
        code, said, _ = here.train()
        assert code == 0 and "Disk: about 5" in said and "2 checkpoints of 2" in said
        assert results(here.out) == expected and not stray(here.out)

    on_small_disk(tmp_path, values, act)


def test_f20_no_space_keeps_the_old_checkpoint_and_stops_after_three(values, expected, tmp_path):
    def act(here: Inside) -> None:
        here.acts = {3: here.fill}
        code, said, events = here.train()
        assert code == 4 and advised(events, "train.save_failed")[0]["step"] == 4
        assert "after 2 more failures" in said and "after 1 more failures" in said
        assert "Step 8 was not saved either, 3 times running" in said and "are needed and 0 B are free" in said
        assert said.count("There is no") + said.count("No room for a checkpoint") == 3 and newest(here.out) == 2
        here.free()
        here.acts = {}
        code, said, _ = here.train()
        assert code == 0 and "Resuming at step 2" in said
        assert results(here.out) == expected and newest(here.out) == STEPS and not stray(here.out)

    on_small_disk(tmp_path, values, act)


def test_f20_space_that_comes_back_in_time_costs_nothing(values, expected, tmp_path):
    def act(here: Inside) -> None:
        here.acts = {3: here.fill, 5: here.free}
        code, _, events = here.train()
        assert code == 0 and len(advised(events, "train.save_failed")) == 1
        assert results(here.out) == expected and newest(here.out) == STEPS and not stray(here.out)

    on_small_disk(tmp_path, values, act)


def test_f20_a_disk_that_fills_up_while_a_checkpoint_is_written_keeps_the_old_one(values, expected, tmp_path):
    """What is looked at before a save is free then; the disk itself says no."""

    def act(here: Inside) -> None:
        true_stage = checkpoint._stage

        def stage(staged: Path, *rest: Any) -> Any:
            if staged.name == ".staged-step-4":
                here.fill(leave=100 << 10)
            return true_stage(staged, *rest)

        checkpoint._stage = stage
        here.acts = {5: here.free, 6: lambda: left.append(stray(here.out))}
        left: list[Any] = []
        code, said, _ = here.train()
        assert code == 0 and "Step 4 was not saved. There is no space left in" in said and "free); free some" in said
        assert left == [[]] and results(here.out) == expected and newest(here.out) == STEPS and not stray(here.out)

    on_small_disk(tmp_path, values, act)


def test_f20_a_stop_that_cannot_be_saved_does_not_say_that_it_was(values, expected, tmp_path):
    def act(here: Inside) -> None:
        here.acts = {2: lambda: None, 3: lambda: (here.fill(), os.kill(os.getpid(), signal.SIGTERM))}
        code, said, _ = here.train()
        assert code == 4 and "No room for a checkpoint" in said and "after saving" not in said
        assert newest(here.out) == 2 and not stray(here.out)

    on_small_disk(tmp_path, values, act)


def test_f23_a_disk_that_fills_up_during_export_leaves_no_half_file(values, expected, tmp_path):
    def act(here: Inside) -> None:
        here.acts = {"Finished": lambda: here.fill(leave=20 << 10)}
        code, said, _ = here.train()
        assert code == 4 and "There is no space left in" in said and "free); free some" in said
        assert not list(here.out.glob("*.safetensors")) and newest(here.out) == STEPS and not stray(here.out)
        here.free()
        here.acts = {}
        code, _, _ = here.train()
        assert code == 0 and results(here.out) == expected and not stray(here.out)

    on_small_disk(tmp_path, values, act)


def test_f24_inodes_that_run_out_are_named_although_bytes_are_free(values, expected, tmp_path):
    def act(here: Inside) -> None:
        made: list[Path] = []

        def use_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    path = here.place / f"empty-{len(made)}"
                    path.touch()
                    made.append(path)

        here.acts = {3: use_up}
        code, said, _ = here.train()
        assert code == 4 and "takes no further file, although 1" in said and "inodes are used up" in said
        assert "no space left in" not in said and newest(here.out) == 2
        for path in made:
            path.unlink()
        here.acts = {}
        code, _, _ = here.train()
        assert code == 0 and results(here.out) == expected and not stray(here.out)

    on_small_disk(tmp_path, values, act, "size=2m,nr_inodes=60")


def test_f27_an_output_that_becomes_read_only_is_tried_three_times(values, expected, tmp_path):
    def act(here: Inside) -> None:
        here.acts = {3: lambda: read_only(here.out / "checkpoints")}
        code, said, events = here.train()
        assert code == 4 and len(advised(events, "train.save_failed")) == 2
        assert said.count("Read-only file system") == 3 and "Step 8 was not saved either" in said
        assert newest(here.out) == 2
        assert ctypes.CDLL(None).umount(os.fsencode(here.out / "checkpoints")) == 0
        here.acts = {}
        code, said, _ = here.train()
        assert code == 0 and "Resuming at step 2" in said and results(here.out) == expected and not stray(here.out)

    on_small_disk(tmp_path, values, act)


def test_f21_a_cache_that_will_not_fit_is_refused_after_the_first_entries(values, expected, tmp_path):
    def act(here: Inside) -> None:
        loader.CHUNK = 1
        cache = {"cache_dir": str(here.place / "cache"), "output_dir": str(tmp_path / "out")}
        code, said, events = here.train(**cache)
        assert code == 4 and "The cache needs about" in said and f"are free in {here.place / 'cache'}" in said
        assert not events and "Encoding latents: 1 of 6" in said
        kept = len(list((here.place / "cache").rglob("*.safetensors")))
        assert kept >= 1 and not stray(here.place / "cache")
        ctypes.CDLL(None).mount(None, os.fsencode(here.place), None, MS_REMOUNT, b"size=2m")
        code, said, _ = here.train(**cache)
        assert code == 0 and f"{kept} entries reused" in said and results(tmp_path / "out") == expected

    on_small_disk(tmp_path, values, act, "size=20k")


# ---- a disk that fails: os.fsync, in this process


def failing(monkeypatch: pytest.MonkeyPatch, number: int, times: int, out: Path, first: int = 3) -> None:
    """Let fsync of files of the checkpoints of step `first` and later fail so many times."""
    true_sync, left = os.fsync, [times]

    def fsync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        step = path.partition("/.staged-step-")[2].partition("/")[0]
        if step.isdigit() and int(step) >= first and left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        true_sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)


linux = pytest.mark.skipif(sys.platform != "linux", reason="which file is flushed is told by /proc")


@linux
def test_f25_a_disk_error_is_told_and_the_next_save_tries_again(values, expected, monkeypatch):
    out = Path(values["output_dir"])
    failing(monkeypatch, errno.EIO, 2, out)
    left: dict[int, Any] = {}
    events, _ = train(values, lambda e: left.update({e.step: stray(out)}) if isinstance(e, Stepped) else None)
    failed = advised(events, "train.save_failed")
    assert [row["step"] for row in failed] == [4, 6] and "Input/output error" in str(failed[0]["reason"])
    assert left[5] == [] and newest(out) == STEPS and results(out) == expected and not stray(out)


@linux
def test_f25_three_disk_errors_in_a_row_end_the_run(values, expected, monkeypatch):
    out = Path(values["output_dir"])
    with monkeypatch.context() as patch:
        failing(patch, errno.EIO, 99, out)
        with pytest.raises(MachineError) as caught:
            train(values)
    said = str(caught.value)
    assert caught.value.exit_code == 4 and "Step 8 was not saved either, 3 times running" in said
    assert "Input/output error" in said and newest(out) == 2 and not stray(out)
    assert json.loads((out / "run.json").read_text())["state"] == "failed"
    _, codes = train(values)
    assert "train.resuming" in codes and results(out) == expected and not stray(out)


@linux
def test_f25_errors_that_are_not_in_a_row_do_not_add_up(values, expected, monkeypatch):
    out = Path(values["output_dir"])
    true_sync, seen = os.fsync, set()

    def fsync(handle: int) -> None:
        step = os.readlink(f"/proc/self/fd/{handle}").partition("/.staged-step-")[2].partition("/")[0]
        if step in ("2", "6", "10") and step not in seen:
            seen.add(step)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        true_sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    events, _ = train(values)
    assert [row["step"] for row in advised(events, "train.save_failed")] == [2, 6, 10]
    assert results(out) == expected and newest(out) == STEPS


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP], ids=["EINVAL", "ENOTSUP"])
def test_f26_a_file_system_without_fsync_is_one_warning(values, expected, monkeypatch, number):
    out = Path(values["output_dir"])

    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    events, _ = train(values)
    told = advised(events, "train.not_durable")
    assert len(told) == 1 and told[0]["path"] == out / "checkpoints"
    assert "does not promise that a save survives a power cut" in (out / "train.log").read_text()
    assert results(out) == expected and newest(out) == STEPS and not stray(out)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system to write to")
def test_f29_output_cache_and_temporary_folder_may_lie_on_different_disks(values, expected, monkeypatch, tmp_path):
    """Whatever is renamed is renamed beside its place: os.replace itself says EXDEV otherwise."""
    import shutil
    import tempfile

    out = Path(tempfile.mkdtemp(dir="/dev/shm")) / "out"
    if out.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("both folders are on one file system")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    renamed, true_replace = [], os.replace

    def replace(source: Any, target: Any) -> None:
        renamed.append((Path(source).parent, Path(target).parent, os.stat(Path(target).parent).st_dev))
        true_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    try:
        cache = {"cache_dir": str(tmp_path / "cache"), "output_dir": str(out)}
        train(values | cache)
        assert results(out) == expected and newest(out) == STEPS and not stray(out)
        assert len(renamed) > 10 and all(source == target for source, target, _ in renamed)
        assert {device for _, _, device in renamed} == {out.stat().st_dev, tmp_path.stat().st_dev}
    finally:
        shutil.rmtree(out.parent)


# ---- the arithmetic


@pytest.mark.parametrize(
    ("planned", "existing", "keep", "every", "best", "count"),
    [
        (range(2, 13, 2), [], None, None, False, 6),
        (range(2, 13, 2), [2, 4], None, None, False, 4),
        (range(2, 13, 2), [], 1, None, False, 2),
        (range(2, 13, 2), [], 3, None, False, 4),
        (range(2, 13, 2), [2, 4, 6], 3, None, False, 1),
        (range(2, 13, 2), [], 1, 4, False, 5),
        (range(2, 13, 2), [], 1, None, True, 3),
        ([12], [], 3, None, False, 1),
        ([], [12], 1, None, False, 0),
    ],
)
def test_f20_how_many_checkpoints_will_be_there_at_once(planned, existing, keep, every, best, count):
    assert disk.to_come(planned, existing, keep, every, best) == count


def test_f20_the_need_is_what_the_run_takes(values, expected, tmp_path):
    """All checkpoints stay: what was told before the first step is what lies there at the end, within a fifth."""
    told: dict[str, Any] = {}

    def tell(code: str, **params: Any) -> None:
        if code == "train.disk_need":
            told.update(params)

    app.train(from_mapping(values | {"keep_checkpoints": None}), tell=tell)
    out = RunFolder(Path(values["output_dir"]))
    taken = sum(p.stat().st_size for p in (*out.checkpoints.rglob("*"), *out.path.glob("*.safetensors")) if p.is_file())
    need = float(told["need"].split()[0]) * {"KiB": 1 << 10, "MiB": 1 << 20}[told["need"].split()[1]]
    assert told["count"] == 6 and need == pytest.approx(taken, rel=0.25)
