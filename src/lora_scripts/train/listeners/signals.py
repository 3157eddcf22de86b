"""Ctrl-C and a polite kill: finish the step, save, stop; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from lora_scripts.events import Command, Event, Finished, Started, Stepped


class Signals:
    """Holds SIGINT and SIGTERM while the loop runs, and puts the old handlers back.

    Attributes:
        exit_code: 130 for SIGINT, 143 for SIGTERM; 0 until one came.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._old: dict[int, Any] = {}

    def __call__(self, event: Event) -> Command | None:
        """Install, ask to stop, restore."""
        if isinstance(event, Started) and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._heard)
        elif isinstance(event, Finished):
            self.restore()
        elif isinstance(event, Stepped) and self.exit_code:
            return Command.STOP
        return None

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code:
            raise KeyboardInterrupt
        self.exit_code = 128 + number
