"""What a person sees while it trains: progress with time left, a line an epoch, what was saved, advice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lora_scripts import messages, units
from lora_scripts.events import (
    Advised,
    Command,
    EpochEnded,
    Evaluated,
    Event,
    Finished,
    RolledBack,
    Saved,
    Shrunk,
    Skipped,
    Started,
    Stepped,
)

if TYPE_CHECKING:
    from rich.console import Console

EPOCH_LINES = 20


class Progress:
    """Prints to a rich console; a bar only where it is a terminal.

    Args:
        console: where to print; epochs beyond about 20 are told in 20 lines.
    """

    def __init__(self, console: Console):
        self.console = console
        self.total = self.epochs = self.first = 0
        self.started = 0.0
        self.bar: Any = None
        self.task: Any = None

    def __call__(self, event: Event) -> Command | None:
        """Show one event."""
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Stepped) and self.bar is not None:
            self.bar.update(self.task, completed=event.step, loss=f"{event.loss:.4f}")
        elif isinstance(event, EpochEnded):
            self._epoch(event)
        elif isinstance(event, Evaluated):
            more = "".join(f", {name} {value:.3f}" for name, value in event.logs.items())
            self.say("train.evaluated", step=event.step, loss=f"{event.loss:.4f}", more=more)
        elif isinstance(event, Saved):
            self.say("train.saved", step=event.step, path=event.path)
        elif isinstance(event, Skipped | RolledBack | Shrunk):
            self._trouble(event)
        elif isinstance(event, Advised):
            self.say(event.code, **event.params)
        elif isinstance(event, Finished) and self.bar is not None:
            self.bar.stop()
        return None

    def _trouble(self, event: Skipped | RolledBack | Shrunk) -> None:
        """Tell what was done about a step that failed."""
        if isinstance(event, Skipped):
            self.say("train.skipped", step=event.step, ids=event.ids)
        elif isinstance(event, RolledBack):
            self.say("train.rolled_back", step=event.step, failed=event.failed, factor=f"{event.factor:g}")
        else:
            self.say("train.shrunk", before=event.before, after=event.after)

    def say(self, code: str, **params: object) -> None:
        """Print one sentence of the catalogue."""
        self.console.print(messages.text(code, **params), highlight=False, markup=False, soft_wrap=True)

    def _start(self, event: Started) -> None:
        self.total, self.epochs, self.first = event.total, event.epochs, event.step
        self.started = time.monotonic()
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=event.total, completed=event.step, loss="-")
            self.bar.start()

    def _epoch(self, event: EpochEnded) -> None:
        every = max(1, self.epochs // EPOCH_LINES)
        if event.epoch % every and event.epoch != self.epochs:
            return
        spent = time.monotonic() - self.started
        left = spent / max(1, event.step - self.first) * (self.total - event.step)
        self.say(
            "train.epoch",
            epoch=event.epoch,
            epochs=self.epochs,
            step=event.step,
            total=self.total,
            loss=f"{event.loss:.4f}",
            left=units.format_seconds(left),
        )
