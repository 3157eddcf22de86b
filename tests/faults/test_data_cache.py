"""What is encoded goes stale, tears, or cannot be kept; and data that change or go away while a run goes on."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_scripts import app, preparation
from lora_scripts.config.load import from_mapping
from lora_scripts.data import cache
from lora_scripts.errors import DataError, MachineError
from lora_scripts.events import Stepped
from lora_scripts.train import checkpoint, loader
from tests import tiny


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait as often as a user would, but not as long."""
    monkeypatch.setattr(loader, "PAUSES", (0.01, 0.02, 0.04))


def at(step: int, act: Callable[[], object]) -> Callable[[object], None]:
    """Return a listener that acts after a step."""
    return lambda event: act() and None if isinstance(event, Stepped) and event.step == step else None


class Crash(Exception):
    """What nobody expects."""


def crash() -> None:
    raise Crash


def train(settings: dict[str, Any], *, before: Callable[[], object] | None = None, listener: Any = None) -> list[tuple]:
    """Train as the command does, with something between plan and start, or after a step; return what was said."""
    config = from_mapping(settings)
    prepared = preparation.prepare(config)
    if before is not None:
        before()
    said: list[tuple] = []
    listeners = [listener] if listener is not None else []
    try:
        app.train(
            config, prepared=prepared, listeners=listeners, tell=lambda code, **params: said.append((code, params))
        )
    except Exception as error:
        error.said = said  # type: ignore[attr-defined]
        raise
    return said


def counts(said: list[tuple]) -> dict[str, int]:
    return next(params for code, params in said if code == "train.cache")


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def no_temporary_files(folder: Path) -> bool:
    return not list(folder.rglob(".staged-*"))


@pytest.fixture
def run(settings: dict[str, Any], data: Path) -> dict[str, Any]:
    """Four pictures, two an epoch's step, eight steps, saved at every second."""
    tiny.tiny_pictures(data, 4)
    return settings | {"epochs": 4, "gradient_accumulation": 1, "save_steps": 2}


def test_f80_cache_stale_or_foreign_is_made_anew_and_counted(run, data, tmp_path):
    first = counts(train(run))
    assert first == {"reused": 0, "made": 5}, "four pictures and the empty caption"
    shutil.rmtree(tmp_path / "out")
    # Torn: cut, of zeros, a folder's worth of another kind; and one that is edited.
    torn = entries(tmp_path / "cache")[:2]
    torn[0].write_bytes(torn[0].read_bytes()[:-1])
    torn[1].write_bytes(b"\0" * 100)
    assert counts(train(run)) == {"reused": 3, "made": 2}
    shutil.rmtree(tmp_path / "out")
    (data / "disc1.png").write_bytes((tiny.tiny_pictures(tmp_path / "other", 6) / "disc5.png").read_bytes())
    assert counts(train(run)) == {"reused": 4, "made": 1}
    shutil.rmtree(tmp_path / "out")
    assert counts(train(run)) == {"reused": 5, "made": 0}
    assert no_temporary_files(tmp_path / "cache")


BROKEN = {
    "empty": b"",
    "short": b"\x02\0",
    "zeros": b"\0" * 64,
    "length beyond the file": b"\xff" * 8 + b"{}",
    "no JSON": b"\x02\0\0\0\0\0\0\0{{",
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "offset that is text": b'{"a":{"data_offsets":[0,"x"]}}',
    "offset that is a list": b'{"a":{"data_offsets":[0,[1]]}}',
    "no offsets": b'{"a":{"data_offsets":[]}}',
    "a list": b"[1]",
}


@pytest.mark.parametrize("case", BROKEN)
def test_f80_a_torn_or_foreign_entry_is_absent(tmp_path, case):
    content = BROKEN[case]
    if content[:1] in (b"{", b"["):
        content = len(content).to_bytes(8, "little") + content
    store = cache.Cache(tmp_path)
    key = cache.entry_key("a", "b", "c")
    store.path(key).parent.mkdir(parents=True)
    store.path(key).write_bytes(content)
    assert not store.has(key)
    with pytest.raises(KeyError):
        store.get(key)


def test_f80_the_cases_are_all():
    assert len(BROKEN) == 10


def test_f07_what_a_kill_left_in_the_cache_is_swept_at_the_next_start(run, tmp_path):
    train(run)
    shutil.rmtree(tmp_path / "out")
    folder = entries(tmp_path / "cache")[0].parent
    left, fresh = folder / ".staged-99999-x.safetensors", folder / ".staged-99998-y.safetensors"
    for path in (left, fresh):
        path.write_bytes(b"half")
    old = time.time() - 2 * cache.STALE_SECONDS
    os.utime(left, (old, old))
    assert counts(train(run)) == {"reused": 5, "made": 0}
    assert not left.exists()
    assert fresh.exists(), "another run may be writing it"


@pytest.mark.parametrize("place", ["taken", "taken/cache"])
@pytest.mark.parametrize("verb", ["check", "train"])
def test_f21_a_cache_dir_that_cannot_be_written_is_told_before_the_base_is_loaded(
    run, command, tmp_path, monkeypatch, verb, place
):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(preparation, "find_base", lambda config: pytest.fail("the base was looked at"))
    answer = command(verb, run | {"cache_dir": str(tmp_path / place)})
    assert answer.code == 4 and str(tmp_path / place) in answer.error and len(answer.error.splitlines()) == 1
    assert (tmp_path / "taken").read_text() == "a file" and not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that even root cannot write into")
def test_f21_a_cache_dir_that_only_writing_can_tell_is_refused_before_the_base_is_loaded(run, command, tmp_path):
    answer = command("train", run | {"cache_dir": "/proc/sys/lora-scripts"})
    assert answer.code == 4 and "/proc/sys/lora-scripts cannot be written" in answer.error
    assert "Loading" not in answer.out
    assert not (tmp_path / "out" / "run.json").exists()


def test_f37_file_vanishes_between_scan_and_read(run, data, tmp_path):
    with pytest.raises(DataError) as caught:
        train(run, before=(data / "disc1.png").unlink)
    assert caught.value.exit_code == 3 and "disc1.png cannot be read" in str(caught.value)
    waits = [params for code, params in caught.value.said if code == "train.waiting"]
    assert len(waits) == len(loader.PAUSES) and all("disc1.png" in wait["reason"] for wait in waits)
    # Nothing was trained, and what was encoded before is kept.
    record = json.loads((tmp_path / "out" / "run.json").read_text()) if (tmp_path / "out" / "run.json").exists() else {}
    assert record.get("state") != "finished" and not checkpoint.steps(tmp_path / "out" / "checkpoints")
    assert no_temporary_files(tmp_path)
    assert counts(train(run))["made"] > 0


def test_f37_a_file_that_comes_back_in_time_is_read(run, data):
    away = data.parent / "away.png"
    config = from_mapping(run)
    prepared = preparation.prepare(config)
    (data / "disc1.png").rename(away)
    waits = []

    def tell(code: str, **params: object) -> None:
        if code == "train.waiting":
            waits.append(params)
            if len(waits) == 2:
                away.rename(data / "disc1.png")

    outcome = app.train(config, prepared=prepared, tell=tell)
    assert outcome.steps == 8 and len(waits) == 2


def test_f37_a_file_replaced_between_scan_and_read_is_never_trained_on(run, data):
    with pytest.raises(DataError) as caught:
        train(run, before=lambda: (data / "disc1.png").write_bytes((data / "disc2.png").read_bytes()))
    assert caught.value.exit_code == 3 and "disc1.png has changed since" in str(caught.value)


def test_f38_file_replaced_before_resume_is_named(run, data, command, tmp_path):
    with pytest.raises(Crash):
        train(run, listener=at(3, crash))
    (data / "disc1.png").write_bytes((data / "disc2.png").read_bytes())
    answer = command("train", run)
    assert answer.code == 3 and "1 examples" in answer.error and "disc1.png" in answer.error
    assert "training data changed" in answer.error and "--restart" in answer.error
    assert checkpoint.steps(tmp_path / "out" / "checkpoints") == [2]


@pytest.mark.parametrize("replace", [False, True], ids=["gone", "empty mount point"])
def test_f81_mount_lost_is_waited_for_then_saved_and_stopped(run, data, tmp_path, monkeypatch, replace):
    """Mid-run, data are read only where the cache has lost something: both lie on the drive that goes."""
    monkeypatch.setitem(cache.Cache.__init__.__kwdefaults__, "memory_bytes", 1)
    kept = tmp_path / "kept"

    def unmount() -> None:
        shutil.copytree(data, kept)
        shutil.rmtree(data)
        shutil.rmtree(tmp_path / "cache")
        if replace:
            data.mkdir()

    with pytest.raises(DataError) as caught:
        train(run, listener=at(3, unmount))
    assert caught.value.exit_code == 3 and str(data) in str(caught.value)
    assert [code for code, _ in caught.value.said].count("train.waiting") == len(loader.PAUSES)
    out = tmp_path / "out"
    newest = checkpoint.load_newest(out / "checkpoints", lambda code, params: pytest.fail(code))
    assert newest is not None and newest.step == 3, "no step is lost"
    record = json.loads((out / "run.json").read_text())
    assert record["state"] == "failed"
    # The drive comes back, and the same command ends with the bytes of a run that was never touched.
    if replace:
        data.rmdir()
    kept.rename(data)
    said = train(run)
    assert ("train.resuming", {"step": 3, "total": 8}) in said
    resumed = (out / "out.safetensors").read_bytes()
    train(run | {"output_dir": str(tmp_path / "whole" / "out")})
    assert resumed == (tmp_path / "whole" / "out" / "out.safetensors").read_bytes()
    assert no_temporary_files(out) and no_temporary_files(tmp_path / "cache")


def test_f81_a_mount_lost_during_the_scan_stops_with_all_it_could_not_read(run, data, command):
    shutil.rmtree(data)
    answer = command("train", run)
    assert answer.code == 3 and f"The data folder {data} does not exist" in answer.error


def test_f83_a_missing_base_does_not_hide_missing_data(run, command, tmp_path):
    answer = command(
        "check", run | {"base_model": str(tmp_path / "nobase"), "train_data_dir": str(tmp_path / "nodata")}
    )
    first, second = answer.error.splitlines()
    assert answer.code == 2 and "nobase does not exist" in first and "nodata do not exist" in second
    assert "train_data_dir" in second
    sets = {"train_data_dir": None, "datasets": [{"path": run["train_data_dir"]}, {"path": str(tmp_path / "nodata")}]}
    answer = command("check", run | {"base_model": str(tmp_path / "nobase"), **sets})
    assert answer.code == 2 and "set datasets.1.path" in answer.error and len(answer.error.splitlines()) == 2


def test_f28_output_deleted_is_made_anew_with_record_curves_and_next_save(run, tmp_path):
    out = tmp_path / "out"
    said = train(run, listener=at(3, lambda: shutil.rmtree(out)))
    assert [code for code, _ in said].count("train.folder_gone") == 1
    assert checkpoint.steps(out / "checkpoints") == [4, 6, 8]
    assert checkpoint.load_newest(out / "checkpoints", lambda code, params: pytest.fail(code)) is not None
    assert json.loads((out / "run.json").read_text())["state"] == "finished"
    assert (out / "out.safetensors").stat().st_size > 0 and list((out / "logs").glob("events.out.tfevents.*"))
    assert (out / "events.jsonl").read_text().count('"Stepped"') == 5 and no_temporary_files(out)


def test_f28_an_output_folder_that_became_a_file_ends_with_exit_4(run, tmp_path):
    out = tmp_path / "out"

    def swap() -> None:
        shutil.rmtree(out)
        out.write_text("mine")

    with pytest.raises(MachineError) as caught:
        train(run, listener=at(3, swap))
    assert caught.value.exit_code == 4 and str(out) in str(caught.value) and out.read_text() == "mine"


@pytest.mark.parametrize("name", ["logs", "events.jsonl", "train.log"])
def test_f22_a_log_that_cannot_be_written_is_one_warning(run, tmp_path, name):
    out = tmp_path / "out"

    with pytest.raises(Crash):
        train(run, listener=at(3, crash))
    if name == "logs":
        shutil.rmtree(out / name)
        (out / name).write_text("in the way")
    else:
        (out / name).unlink()
        (out / name).mkdir()
    said = train(run)
    warnings = [params["note"] for code, params in said if code == "train.note"]
    assert len(warnings) == 1 and str(out / name) in warnings[0] and "training goes on" in warnings[0]
    assert json.loads((out / "run.json").read_text())["state"] == "finished" and (out / "out.safetensors").exists()
