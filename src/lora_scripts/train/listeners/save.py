"""A checkpoint at each planned step, when somebody asks for one, and where a run is stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from lora_scripts import messages
from lora_scripts.errors import MachineError
from lora_scripts.events import Advised, Asked, Command, Event, Finished, Saved, Skipped, Started, Stepped
from lora_scripts.train import checkpoint, disk
from lora_scripts.train.listeners.control import SAVE

log = logging.getLogger("lora_scripts")
# Saves that fail one after the other before the run stops: by then nobody is making room.
MOST_FAILURES = 3


@dataclass(frozen=True)
class Stay:
    """Which checkpoints stay.

    Attributes:
        last: how many of the newest; None keeps all.
        every: those whose step is a multiple of it stay besides.
        best: returns the step that must stay besides, where there is one.
        measured: there will be a best one.
    """

    last: int | None = None
    every: int | None = None
    best: Callable[[], int | None] = lambda: None
    measured: bool = False


class Save:
    """Writes checkpoints and removes old ones.

    A save that fails costs the steps since the one before: it is told and tried again at the next. What was saved
    before is removed only after the new one has been read back.

    Args:
        folder: output_dir/checkpoints.
        at: steps after which to save.
        keep: which stay; a number is short for the last so many.
        capture: returns the state to write.
        add_files: puts the loadable LoRA of a step into the staged folder.
        emit: where `Saved` goes.
        exporters: LoRA files that are written at the end.
        tell: called with a message code and its parameters.
    """

    def __init__(
        self,
        folder: Path,
        at: Collection[int],
        keep: Stay | int | None,
        capture: Callable[[], checkpoint.State],
        add_files: Callable[[Path, int], None],
        emit: Callable[[Event], object],
        *,
        exporters: int = 0,
        tell: Callable[..., object] = lambda code, **params: None,
    ):
        self.folder, self.at = folder, frozenset(at)
        self.stay = keep if isinstance(keep, Stay) else Stay(keep)
        self.capture, self.add_files, self.emit = capture, add_files, emit
        self.exporters, self.tell = exporters, tell
        self.saved, self.resumed, self.size, self.failures = -1, -1, 0, 0
        self._told: set[str] = set()

    def __call__(self, event: Event) -> Command | None:
        """Try a save before the first step; save after a planned one, and at a stop that fell between two."""
        if isinstance(event, Started) and event.step < event.total:
            self.resumed = event.step
            self._rehearse(event)
        planned = isinstance(event, Stepped | Skipped) and event.step in self.at
        asked = isinstance(event, Asked) and event.what == SAVE
        stopped = isinstance(event, Finished) and event.stopped and event.step > 0
        if (planned or asked or stopped) and event.step != self.saved:
            self._save(event.step, is_last=stopped)
        return None

    def _rehearse(self, event: Started) -> None:
        """Measure a save, and refuse a run that the disk has no room for.

        Raises:
            MachineError: with the bytes.
        """
        state = self.capture()
        disk.check_save(self.folder, sum(tensor.nbytes for tensor in state.tensors.values()))
        sizes = checkpoint.rehearse(self.folder, state, lambda staged: self.add_files(staged, event.step))
        planned = {step for step in self.at if step > event.step}
        there = {step for step in checkpoint.steps(self.folder) if step <= event.step}
        count = disk.to_come(planned, there, self.stay.last, self.stay.every, self.stay.measured)
        lora = sum(size for name, size in sizes.items() if name != checkpoint.STATE)
        need = disk.Need(sum(sizes.values()) + disk.unborn(state.tensors), count, lora * self.exporters)
        free = disk.check_run(self.folder, need)
        self.tell("train.disk_need", **need.told(self.folder, free))
        self.size = need.checkpoint

    def _save(self, step: int, *, is_last: bool) -> None:
        """Write one checkpoint; a failure is told, the last of a row, or of the run, is raised.

        Raises:
            MachineError: nothing more can be hoped for.
        """
        try:
            disk.check_save(self.folder, self.size)
            written = checkpoint.write(self.folder, self.capture(), lambda staged: self.add_files(staged, step))
        except MachineError as error:
            self.failures += 1
            if is_last:
                raise
            if self.failures >= MOST_FAILURES:
                raise MachineError("train.save_given_up", step=step, times=self.failures, reason=str(error)) from error
            self._advise(
                step,
                "train.save_failed",
                {"step": step, "reason": str(error), "left": MOST_FAILURES - self.failures},
            )
            return
        self.saved, self.size, self.failures = step, written.bytes, 0
        if not written.durable:
            self._once(step, "train.not_durable", {"path": self.folder})
        self.emit(Saved(step, str(written.path)))
        kept = self.stay
        failed = checkpoint.prune(
            self.folder, kept.last, kept.best(), every=kept.every, newest=step, resumed=self.resumed
        )
        for path, trouble in failed:
            reason = trouble.strerror or str(trouble)
            self._once(step, "train.prune_failed", {"path": path, "reason": reason})

    def _once(self, step: int, code: str, params: dict[str, object]) -> None:
        if code not in self._told:
            self._told.add(code)
            self._advise(step, code, params)

    def _advise(self, step: int, code: str, params: dict[str, object]) -> None:
        log.warning(messages.text(code, **params))
        self.emit(Advised(step, code, params))
