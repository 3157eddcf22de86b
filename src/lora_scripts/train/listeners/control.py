"""What other processes ask of a running training, through files in `output_dir/control/`.

`control/stop`, `control/save` and `control/preview` are looked for after every step; a file is removed before what it
asks for is done, so that nothing is done twice. What is in the files does not matter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from lora_scripts.events import Asked, Command, Event, Skipped, Started, Stepped

STOP, SAVE, PREVIEW = "stop", "save", "preview"
REQUESTS = (STOP, SAVE, PREVIEW)


class Control:
    """Turns the files into events and commands.

    Args:
        folder: output_dir/control.
        emit: where `Asked` goes.

    Attributes:
        stopped: somebody asked for a stop.
    """

    def __init__(self, folder: Path, emit: Callable[[Event], object]):
        self.folder, self.emit, self.stopped = folder, emit, False

    def __call__(self, event: Event) -> Command | None:
        """Look after each step; what was asked of an earlier run is forgotten."""
        if isinstance(event, Started):
            with contextlib.suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
        elif isinstance(event, Stepped | Skipped):
            for what in self._take():
                self.emit(Asked(event.step, what))
                self.stopped = self.stopped or what == STOP
        return Command.STOP if self.stopped else None

    def _take(self) -> list[str]:
        """Return what is asked for, and take the files away."""
        asked = []
        for what in REQUESTS:
            try:
                (self.folder / what).unlink()
            except OSError:
                continue
            asked.append(what)
        return asked
