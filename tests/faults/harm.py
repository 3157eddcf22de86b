"""What is done to saves and checkpoints: a process that kills itself at a chosen point, and files that are damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lora_scripts.train import checkpoint
from lora_scripts.train.checkpoint import State

EXPORTED = "x.safetensors"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_tensors() -> None:
    """Half of the state is written."""
    true_write = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if path.parent.name != ".staged-step-6":
            return true_write(path, data)
        true_write(path, data[: len(data) // 2])
        die()
        return 0

    Path.write_bytes = write_bytes  # type: ignore[method-assign]


def after_tensors() -> None:
    """Everything but the manifest is written."""
    true_flush = checkpoint._flush
    checkpoint._flush = lambda path: die() if path.parent.name == ".staged-step-6" else true_flush(path)


def before_rename() -> None:
    """The manifest is on the disk, the folder does not have its name yet."""
    true_promote = checkpoint._promote
    checkpoint._promote = lambda staged, final: die() if final.name == "step-6" else true_promote(staged, final)


def in_removal() -> None:
    """The first file of an old checkpoint is gone, the rest is not."""
    true_rmtree = shutil.rmtree

    def rmtree(path: Any, *rest: Any, **more: Any) -> None:
        if Path(path).name.startswith(".pruned-step-4"):
            next(Path(path).iterdir()).unlink()
            die()
        true_rmtree(path, *rest, **more)

    shutil.rmtree = rmtree


def in_export() -> None:
    """The LoRA file is written and does not have its name yet."""
    true_replace = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == EXPORTED:
            die()
        true_replace(source, target)

    os.replace = replace


def truncate(path: Path) -> None:
    file = path / "state.safetensors"
    os.truncate(file, file.stat().st_size // 4)


def cut_three_bytes(path: Path) -> None:
    file = path / "state.safetensors"
    os.truncate(file, file.stat().st_size - 3)


def flip(path: Path) -> None:
    data = bytearray((path / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.safetensors").write_bytes(data)


def flip_lora(path: Path) -> None:
    file = next(path.glob("x-step-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def lose_state(path: Path) -> None:
    (path / "state.safetensors").unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def break_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"schema": 2, "step": 7, "files": {')


def nest_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 100_000)


def foreign_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"step": 3}))


def forked(act: Callable[[], object]) -> int:
    """Do something in a process of its own; return its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def save_for_ever(folder: Path, first: int, report: int) -> None:
    """Write one checkpoint after the other, keep two, and tell which are done."""
    step = first
    while True:
        state = State(step, {f"weight/{i}": torch.full((64, 1024), float(step)) for i in range(8)}, {"note": step})
        checkpoint.write(folder, state, lambda staged: (staged / "lora.safetensors").write_bytes(b"x" * 100_000))
        checkpoint.prune(folder, 2, newest=step)
        os.write(report, f"{step}\n".encode())
        # Every third step is written again, as after going back.
        step += 0 if step % 3 == 0 and random.random() < 0.5 else 1
