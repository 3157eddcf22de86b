"""A checkpoint at each planned step, when somebody asks for one, and where a run is stopped."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from lora_scripts.events import Asked, Command, Event, Finished, Saved, Skipped, Started, Stepped
from lora_scripts.train import checkpoint
from lora_scripts.train.listeners.control import SAVE


class Save:
    """Writes checkpoints and removes old ones.

    Args:
        folder: output_dir/checkpoints.
        at: steps after which to save.
        keep: how many stay; None keeps all.
        capture: returns the state to write.
        add_files: puts the loadable LoRA of a step into the staged folder.
        emit: where `Saved` goes.
        best: returns the step that must stay, where there is one.
    """

    def __init__(
        self,
        folder: Path,
        at: Collection[int],
        keep: int | None,
        capture: Callable[[], checkpoint.State],
        add_files: Callable[[Path, int], None],
        emit: Callable[[Event], object],
        best: Callable[[], int | None] = lambda: None,
    ):
        self.folder, self.at, self.keep = folder, frozenset(at), keep
        self.capture, self.add_files, self.emit = capture, add_files, emit
        self.best = best
        self.saved = -1

    def __call__(self, event: Event) -> Command | None:
        """Try a save before the first step; save after a planned one, and at a stop that fell between two."""
        if isinstance(event, Started) and event.step < event.total:
            checkpoint.rehearse(self.folder, self.capture(), lambda staged: self.add_files(staged, event.step))
        planned = isinstance(event, Stepped | Skipped) and event.step in self.at
        asked = isinstance(event, Asked) and event.what == SAVE
        stopped = isinstance(event, Finished) and event.stopped and event.step > 0
        if (planned or asked or stopped) and event.step != self.saved:
            path = checkpoint.write(self.folder, self.capture(), lambda staged: self.add_files(staged, event.step))
            self.saved = event.step
            self.emit(Saved(event.step, str(path)))
            checkpoint.prune(self.folder, self.keep, self.best())
        return None
