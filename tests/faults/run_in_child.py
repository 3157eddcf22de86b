"""A training in a process of its own, started by fork where that is possible, so that torch is imported once.

The child is this test process's copy: it trains on the tiny base with the real command line and is killed for real.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TIMEOUT = 120


class Child:
    """One training process.

    Attributes:
        out: its output_dir.
        said: where its standard output and error go.
    """

    def __init__(self, config: Path, out: Path, words: list[str], before: Callable[[], None] | None = None):
        self.out, self.said = out, config.with_suffix(".said")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(config, words, before)
        self.status: int | None = None

    def _live(self, config: Path, words: list[str], before: Callable[[], None] | None) -> None:
        code = 99
        try:
            os.setsid()
            handle = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(handle, number)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(config.parent)
            if before is not None:
                before()
            from lora_scripts.cli import main

            code = main([*words, "--config", str(config)] if words[0] == "train" else words)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def wait(self) -> int:
        """Return the exit code, or minus the number of the signal that ended it."""
        self.until(self.ended)
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            if condition != self.ended:
                assert not self.ended(), f"it ended first: {self.text()}"
            assert time.monotonic() < end, self.text()
            time.sleep(0.002)

    def text(self) -> str:
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def events(self) -> list[dict[str, Any]]:
        return events_of(self.out)

    def step(self) -> int:
        return max((row["step"] for row in self.events() if row["event"] == "Stepped"), default=0)


def events_of(out: Path) -> list[dict[str, Any]]:
    rows = []
    path = out / "events.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


@contextlib.contextmanager
def child(
    config: Path, out: Path, words: list[str] | None = None, before: Callable[[], None] | None = None
) -> Iterator[Child]:
    """Start a training; whatever the test does, nothing of it is left running."""
    process = Child(config, out, words or ["train"], before)
    try:
        yield process
    finally:
        if not process.ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
