"""The run folder: who owns it, what it was made from, what state it is in.

output_dir/
  pytorch_lora_weights.safetensors   the LoRA for diffusers
  <name>.safetensors                 the LoRA for the WebUI and ComfyUI
  run.json                           config, hashes, versions, times, state
  events.jsonl, train.log            what happened, for programs and for people
  logs/                              TensorBoard
  checkpoints/step-N/                everything to resume from, and a loadable LoRA
  previews/                          pictures of each save; before_after.png
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_scripts.errors import CheckpointError, ConfigError, LockError
from lora_scripts.files import STAGED_PREFIX, cannot_write, write_bytes
from lora_scripts.redaction import hide

SCHEMA_VERSION = 1
OWN_FILES = frozenset({"run.json", "events.jsonl", "train.log", "report.md", ".lock"})
OWN_FOLDERS = frozenset({"logs", "checkpoints", "previews", "control"})
# What a run leaves that ended before it began; everything else is ours only where run.json says so.
FIRST_FILES = frozenset({".lock", "train.log"})
RECORD_KEYS = frozenset({"config", "data", "base", "state", "sessions"})


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.record_path = path / "run.json"
        self.events_path = path / "events.jsonl"
        self.log_path = path / "train.log"
        self.curves = path / "logs"
        self.checkpoints = path / "checkpoints"
        self.previews = path / "previews"
        self.control = path / "control"
        self.report = path / "report.md"

    def check(self) -> None:
        """Refuse a path that is a file, or a folder that holds something other than a run.

        Raises:
            ConfigError: with the names found.
        """
        if self.path.is_file():
            raise ConfigError("config.output_is_file", path=self.path)
        if not self.path.is_dir() or self.record_path.exists():
            return
        foreign = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in FIRST_FILES and not entry.name.startswith(STAGED_PREFIX)
        )
        if foreign:
            raise ConfigError("config.output_foreign", path=self.path, names=", ".join(foreign[:4]))

    def record(self) -> dict[str, Any] | None:
        """Return run.json, or None where no run was started."""
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
            schema = int(record["schema"])
            if not RECORD_KEYS <= record.keys() or not isinstance(record["sessions"], list):
                raise ValueError
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError("train.record_broken", path=self.record_path) from error
        if schema > SCHEMA_VERSION:
            raise CheckpointError("train.newer_version", path=self.record_path, version=schema, known=SCHEMA_VERSION)
        return record

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace run.json atomically; the folder is made where it is gone."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        write_bytes(self.record_path, (hide(json.dumps(record, indent=1, ensure_ascii=False)) + "\n").encode())

    def sweep(self) -> None:
        """Remove what a kill between writing and renaming left."""
        for path in self.path.glob(f"{STAGED_PREFIX}*"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what an earlier run of ours left (for --restart): only where its record stands."""
        record = self.record()
        if record is None:
            return
        for name in OWN_FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        written = {Path(name).name for name in record.get("files", [])} - {"", ".", ".."}
        for name in (OWN_FILES - FIRST_FILES) | written:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def owned(self) -> Iterator[dict[str, Any] | None]:
        """Hold the folder's lock; yields who held it before and ended without letting go, or None.

        Raises:
            LockError: another process holds it; the message tells which.
            MachineError: the folder cannot be written.
        """
        path = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            if not _lock(handle):
                owner = _owner(path)
                raise LockError("train.locked", path=self.path, **owner)
            before = _owner(path) if os.fstat(handle).st_size else None
            os.ftruncate(handle, 0)
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.write(handle, json.dumps(owner).encode())
            try:
                yield before
            finally:
                os.ftruncate(handle, 0)
        finally:
            os.close(handle)

    def owner(self) -> dict[str, Any] | None:
        """Return who holds the folder now, or None; a process that ended holds nothing, however it ended."""
        path = self.path / ".lock"
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:
            return None
        try:
            return None if _lock(handle) else _owner(path)
        finally:
            os.close(handle)

    def ask(self, what: str) -> None:
        """Leave a request for the process that trains here; see `train.listeners.control`.

        Raises:
            MachineError: the folder cannot be written.
        """
        try:
            self.control.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.control, error) from error
        write_bytes(self.control / what, b"", durable=False)


def _lock(handle: int) -> bool:
    """Take an exclusive lock that ends with the process, however it ends."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        import msvcrt

        windows: Any = msvcrt
        try:
            windows.locking(handle, windows.LK_NBLCK, 1)
        except OSError:
            return False
    except OSError:
        return False
    return True


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text())
        return {key: owner[key] for key in ("pid", "host", "since")}
    except (OSError, ValueError, KeyError):
        return {"pid": "?", "host": "?", "since": "?"}
