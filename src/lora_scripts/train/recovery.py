"""What is done about a step whose loss or gradient is not finite: stop, skip it, or go back and on with a lower rate.

Either way nothing was updated: the loop looks before the update. What was done is part of the run's state, so that a
resumed run does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import NumericsError
from lora_scripts.events import Event, RolledBack, Skipped
from lora_scripts.train import state

if TYPE_CHECKING:
    from lora_scripts.train.checkpoint import State
    from lora_scripts.train.loop import Trainer

STOP, SKIP, ROLL_BACK = "stop", "skip", "roll_back"
POLICIES = (STOP, SKIP, ROLL_BACK)
# Of the peak rates, each time.
SLOWER = 0.5


class Recovery:
    """Answers the loop whether to go on after a `NumericsError`.

    Args:
        policy: one of `POLICIES`.
        limit: steps skipped in a row, or returns to a checkpoint in all, before the run stops after all.
        emit: where `Skipped` and `RolledBack` go.

    Attributes:
        newest: returns the newest whole checkpoint, or None; set when the run's folder is known.
    """

    def __init__(self, policy: str, limit: int, emit: Callable[[Event], object]):
        self.policy, self.limit, self.emit = policy, limit, emit
        self.newest: Callable[[], State | None] = lambda: None
        self.times, self.last = 0, -1

    def __call__(self, trainer: Trainer, error: NumericsError) -> bool:
        """Do what the policy says; False where the run must stop."""
        if self.policy == SKIP:
            return self._skip(trainer, error)
        return self.policy == ROLL_BACK and self._roll_back(trainer)

    def _skip(self, trainer: Trainer, error: NumericsError) -> bool:
        in_a_row = self.times + 1 if self.last == trainer.done else 1
        if in_a_row > self.limit:
            return False
        trainer.optimizer.zero_grad()
        trainer.done += 1
        self.times, self.last = in_a_row, trainer.done
        self.emit(Skipped(trainer.done, str(error.params.get("ids", ""))))
        return True

    def _roll_back(self, trainer: Trainer) -> bool:
        found = self.newest() if self.times < self.limit else None
        if found is None:
            return False
        failed, slowed = trainer.done + 1, trainer.slowed * SLOWER
        trainer.optimizer.zero_grad()
        state.restore(trainer, found)
        trainer.slowed = slowed
        self.times += 1
        self.emit(RolledBack(found.step, failed, slowed))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to decide alike."""
        return {"times": self.times, "last": self.last}

    def load_state_dict(self, kept: dict[str, Any] | None) -> None:
        """Continue from `state_dict`."""
        if kept:
            self.times, self.last = int(kept["times"]), int(kept["last"])
