"""What the base and the LoRA make of the same prompts, beside each other, at each save."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.events import Advised, Asked, Command, Event, Previewed, Saved, Started, Stepped
from lora_scripts.train.listeners.control import PREVIEW

log = logging.getLogger("lora_scripts")


@dataclass(frozen=True)
class Wish:
    """What to make: prompts, the seed of the first, and the family's own settings."""

    prompts: Sequence[Any]
    seed: int
    settings: Mapping[str, Any]


class Preview:
    """Writes `previews/step-N` at each save and copies the last to `previews/before_after`, with the family's suffix.

    Args:
        folder: output_dir/previews.
        at: the planned saves; one made because the run is stopped is not previewed, so that stopping is quick.
        off: context manager in which the adapter has no effect.
        averaged: context manager in which the weights to be exported are live.
        emit: where `Previewed` goes.
        together: all processes draw, at the same steps whether or not one of them has saved; one `writes`.
    """

    def __init__(
        self,
        folder: Path,
        family: Any,
        wish: Wish,
        *,
        at: Collection[int],
        off: Callable[[], AbstractContextManager],
        averaged: Callable[[], AbstractContextManager],
        emit: Callable[[Event], object],
        together: bool = False,
        writes: bool = True,
    ):
        self.folder, self.family, self.wish = folder, family, wish
        self.at, self.off, self.averaged, self.emit = frozenset(at), off, averaged, emit
        self.together, self.writes = together, writes
        self._before: Sequence[Any] | None = None
        self._failed = False

    def __call__(self, event: Event) -> Command | None:
        """Make the base's part before the first step, and the whole after a save."""
        if isinstance(event, Started) and event.step < event.total and self.at:
            self._try(event.step, self._show_base)
        elif self._is_time(event):
            self._try(event.step, lambda: self._show(event.step))
        return None

    def _is_time(self, event: Event) -> bool:
        planned = isinstance(event, Stepped if self.together else Saved) and event.step in self.at
        return planned or (isinstance(event, Asked) and event.what == PREVIEW)

    def _try(self, step: int, show: Callable[[], None]) -> None:
        """Make a preview; one that cannot be made costs a sentence and never the run."""
        try:
            show()
        except Exception as error:
            # Whatever goes wrong in drawing: training is worth more.
            log.warning("preview", exc_info=True)
            if not self._failed:
                reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
                self.emit(Advised(step, "train.preview_failed", {"step": step, "reason": reason}))
            self._failed = True

    def _show_base(self) -> None:
        with self.off():
            self._before = self._make()

    def _show(self, step: int) -> None:
        if self._before is None:
            self._show_base()
        with self.averaged():
            after = self._make()
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        assert self._before is not None
        path = self.family.lay_out(self._before, after, self.wish.prompts, self.folder / f"step-{step}")
        shutil.copyfile(path, self.folder / f"before_after{path.suffix}")
        self._failed = False
        self.emit(Previewed(step, str(path)))

    def _make(self) -> Sequence[Any]:
        return self.family.preview(self.wish.prompts, seed=self.wish.seed, **self.wish.settings)
