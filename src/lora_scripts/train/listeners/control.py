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
        folder: output_dir/control; None where another process looks.
        emit: where `Asked` goes.
        agree: tells the other processes of a preview, where it takes all of them to draw one.

    Attributes:
        stopped: somebody asked for a stop.
    """

    def __init__(
        self,
        folder: Path | None,
        emit: Callable[[Event], object],
        agree: Callable[[bool], bool] = lambda wish: wish,
    ):
        self.folder, self.emit, self.agree, self.stopped = folder, emit, agree, False

    def __call__(self, event: Event) -> Command | None:
        """Look after each step; what was asked of an earlier run is forgotten."""
        if isinstance(event, Started):
            if self.folder is not None:
                with contextlib.suppress(OSError):
                    self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
        elif isinstance(event, Stepped | Skipped):
            asked = {*self._take()}
            asked = asked - {PREVIEW} | ({PREVIEW} if self.agree(PREVIEW in asked) else set())
            for what in sorted(asked):
                self.emit(Asked(event.step, what))
                self.stopped = self.stopped or what == STOP
        return Command.STOP if self.stopped else None

    def _take(self) -> list[str]:
        """Return what is asked for, and take the files away."""
        asked: list[str] = []
        for what in REQUESTS if self.folder is not None else ():
            try:
                (self.folder / what).unlink()  # type: ignore[operator]
            except OSError:
                continue
            asked.append(what)
        return asked
