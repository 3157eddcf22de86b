"""Signals of the system: finish the step, save, stop; a second Ctrl-C or polite kill stops at once.

SIGINT, SIGTERM     saves, exit code 130 or 143
SIGHUP              the terminal is gone: saves, exit code 129; a process started to survive that does not hear it
SIGUSR1             a batch system is about to take the machine: saves, exit code 75, which asks to be started again
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from lora_scripts import messages
from lora_scripts.events import Command, Event, Finished, Skipped, Started, Stepped

REQUEUE = 75
# Windows has the first two only.
HEARD = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")
FORCEFUL = ("SIGINT", "SIGTERM", "SIGBREAK")


class Signals:
    """Holds the handlers while the loop runs, and puts the old ones back.

    Attributes:
        exit_code: what the process should end with; 0 until a signal came.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._old: dict[int, Any] = {}

    def __call__(self, event: Event) -> Command | None:
        """Install, restore."""
        if isinstance(event, Started) and threading.current_thread() is threading.main_thread():
            for name in HEARD:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._heard)
        elif isinstance(event, Finished) and not event.stopped:
            # A run that stops has its last save before it: that is not to be cut short by a first signal.
            self.restore()
        return None

    def asked(self, event: Event) -> Command | None:
        """Ask to stop; the last listener, so that a signal that comes during a save asks for no second one."""
        return Command.STOP if isinstance(event, Stepped | Skipped) and self.exit_code else None

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.exit_code and name in FORCEFUL:
            raise KeyboardInterrupt
        if not self.exit_code:
            self.exit_code = REQUEUE if name == "SIGUSR1" else 128 + number
            # Not through the console, which may be printing at this moment; and the terminal may be gone.
            try:
                os.write(2, (messages.text("train.stopping", signal=name) + "\n").encode())
            except OSError:
                pass
