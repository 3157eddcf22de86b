"""What the curves show and a forum would say: told once each, with the number."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from statistics import median

from lora_scripts.events import Advised, Command, Evaluated, Event, Stepped

WINDOW = 50
JUMP = 3.0
FLAT_STEPS = 300
FLAT_SHARE = 0.01
RISES = 3


class Advice:
    """Watches for a jumping loss, a flat loss, and a held-out loss that rises several times running.

    Args:
        emit: where an `Advised` event goes.
    """

    def __init__(self, emit: Callable[[Event], object]):
        self.emit = emit
        self.recent: deque[float] = deque(maxlen=FLAT_STEPS)
        self.held: list[float] = []
        self.said: set[str] = set()

    def __call__(self, event: Event) -> Command | None:
        """Look at one event."""
        if isinstance(event, Stepped):
            self._loss(event)
        elif isinstance(event, Evaluated):
            self._held_out(event)
        return None

    def _loss(self, event: Stepped) -> None:
        """A jump is a mean of 5 steps over 3 times the median of the 50 before; flat is no gain in 300 steps."""
        self.recent.append(event.loss)
        losses = list(self.recent)
        if len(losses) >= WINDOW + 5:
            now, before = sum(losses[-5:]) / 5, median(losses[-WINDOW - 5 : -5])
            if before > 0 and now > JUMP * before:
                self._say(event.step, "train.advice_jump", now=f"{now:.3g}", before=f"{before:.3g}")
        if len(losses) == FLAT_STEPS:
            third = FLAT_STEPS // 3
            first, last = sum(losses[:third]) / third, sum(losses[-third:]) / third
            if abs(first - last) <= FLAT_SHARE * abs(first):
                self._say(event.step, "train.advice_flat", steps=FLAT_STEPS, first=f"{first:.4g}", last=f"{last:.4g}")

    def _held_out(self, event: Evaluated) -> None:
        self.held.append(event.loss)
        tail = self.held[-RISES - 1 :]
        if len(tail) == RISES + 1 and all(a < b for a, b in pairwise(tail)):
            self._say(event.step, "train.advice_rising", times=RISES, first=f"{tail[0]:.4g}", last=f"{tail[-1]:.4g}")

    def _say(self, step: int, code: str, **params: object) -> None:
        if code not in self.said:
            self.said.add(code)
            self.emit(Advised(step, code, params))

    def state_dict(self) -> dict:
        """Return what a resumed run needs to say the same things."""
        return {"recent": list(self.recent), "held": self.held, "said": sorted(self.said)}

    def load_state_dict(self, state: dict | None) -> None:
        """Continue from `state_dict`."""
        if not isinstance(state, dict):
            return
        self.recent.extend(state["recent"])
        self.held, self.said = list(state["held"]), set(state["said"])
