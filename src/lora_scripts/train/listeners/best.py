"""Remembers which step's weights did best on the held-out part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lora_scripts.events import Command, Evaluated, Event

# What decides, in this order: the first of these that is measured. Larger is better.
MEASURES = ("macro_f1", "label_accuracy")


@dataclass(frozen=True)
class Found:
    """The best so far; the first of equals stays."""

    step: int
    name: str
    value: float


class Best:
    """Watches measurements of trained weights; the base's own, at step 0, does not count."""

    def __init__(self) -> None:
        self.found: Found | None = None

    def __call__(self, event: Event) -> Command | None:
        """Look at one event."""
        if isinstance(event, Evaluated) and event.step > 0:
            name = next((name for name in MEASURES if name in event.logs), "loss")
            value = event.logs.get(name, -event.loss)
            if self.found is None or value > self.found.value:
                self.found = Found(event.step, name, value)
        return None

    def state_dict(self) -> dict[str, Any] | None:
        """Return what a resumed run needs to go on."""
        return asdict(self.found) if self.found is not None else None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict`."""
        self.found = Found(**state) if state else None
