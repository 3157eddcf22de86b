"""A small disk: a process of its own that mounts one, and does everything there."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_scripts import files
from lora_scripts.events import Finished, Stepped

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
NO_MOUNT = 77
TIMEOUT = 120


class Inside:
    """What a test does on the small disk."""

    def __init__(self, place: Path, values: dict[str, Any]):
        self.place, self.values, self.out = place, values, Path(values["output_dir"])
        self.filler = place / "filler"
        self.acts: dict[Any, Callable[[], object]] = {}

    def fill(self, leave: int = 0) -> None:
        """Take the room up, but for so many bytes."""
        size = max(0, files.room(self.place)[0] - leave)
        with contextlib.suppress(OSError), self.filler.open("wb") as file:
            file.write(b"\0" * size)
            file.flush()

    def free(self) -> None:
        self.filler.unlink()

    def train(self, **more: Any) -> tuple[int, str, list[Any]]:
        """Run the command; return its exit code, what it said and the events."""
        from lora_scripts.cli import main
        from lora_scripts.train.listeners import console

        events: list[Any] = []
        true_progress = console.Progress

        class Progress(true_progress):  # type: ignore[misc, valid-type]
            def __call__(progress, event: Any) -> Any:
                events.append(event)
                key = type(event).__name__ if isinstance(event, Finished) else getattr(event, "step", None)
                if isinstance(event, Stepped | Finished) and key in self.acts:
                    self.acts[key]()
                return super().__call__(event)

        console.Progress = Progress
        config = self.place.parent / "run.yaml"
        config.write_text(json.dumps(self.values | more))
        before = said_so_far()
        code = main(["train", "--config", str(config)])
        sys.stdout.flush()
        sys.stderr.flush()
        console.Progress = true_progress
        return code, said_so_far()[len(before) :], events


def said_so_far() -> str:
    return Path(os.readlink("/proc/self/fd/1")).read_text(errors="replace")


def on_small_disk(
    tmp_path: Path, values: dict[str, Any], act: Callable[[Inside], object], options: str = "size=2m"
) -> None:
    """Do `act` in a forked process with a tmpfs at tmp_path/small; skip where nothing can be mounted."""
    if sys.platform != "linux":
        pytest.skip("a small file system is mounted on Linux only")
    sys.stdout.flush()
    sys.stderr.flush()
    answer = tmp_path / "answer"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            handle = os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(handle, number)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(tmp_path)
            if not mounted(tmp_path / "small", options):
                os._exit(NO_MOUNT)
            act(Inside(tmp_path / "small", values))
            code = 0
        except BaseException:  # noqa: BLE001 told by the parent
            answer.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    status = waited(pid)
    if status == NO_MOUNT:
        pytest.skip("this machine lets nobody mount a small file system (unshare)")
    said = (tmp_path / "said").read_text(errors="replace")
    assert status == 0, (answer.read_text() if answer.exists() else f"exit {status}") + said
    assert "Traceback" not in said


def waited(pid: int) -> int:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("it did not end")


def mounted(place: Path, options: str) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS if user == 0 else CLONE_NEWNS | CLONE_NEWUSER):
        return False
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    private = libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    return private and libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, options.encode()) == 0


def read_only(path: Path) -> None:
    """Let nothing be written below a folder from now on; not even by root."""
    libc = ctypes.CDLL(None, use_errno=True)
    name = os.fsencode(path)
    assert libc.mount(name, name, None, MS_BIND, None) == 0
    assert libc.mount(None, name, None, MS_REMOUNT | MS_BIND | MS_RDONLY, None) == 0
