"""Held-out loss at fixed noise levels: the same numbers for the same weights, whenever it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lora_scripts.contracts import Batch, Objective
from lora_scripts.events import Command, Evaluated, Event, Started, Stepped
from lora_scripts.train.modes import measuring


class Evaluate:
    """Measures before the first step, every so many steps, and at the end.

    Args:
        batches: returns the held-out micro-batches, the same each time.
        every: steps between measurements.
        levels: noise levels an example, evenly spaced quantiles.
        emit: where `Evaluated` goes.
    """

    def __init__(
        self,
        family: Any,
        objective: Objective,
        accelerator: Any,
        batches: Callable[[], Sequence[Sequence[Batch]]],
        *,
        every: int,
        levels: int,
        emit: Callable[[Event], object],
    ):
        self.family, self.objective, self.accelerator, self.batches = family, objective, accelerator, batches
        self.every, self.levels, self.emit = every, levels, emit
        self.total = 0

    def __call__(self, event: Event) -> Command | None:
        """Measure when it is time."""
        if isinstance(event, Started):
            self.total = event.total
            if event.step == 0:
                self.emit(Evaluated(0, self.measure()))
        elif isinstance(event, Stepped) and (event.step % self.every == 0 or event.step == self.total):
            self.emit(Evaluated(event.step, self.measure()))
        return None

    def measure(self) -> float:
        """Return the weighted mean loss over examples and levels, without dropout or gradients."""
        import torch

        sums = torch.zeros(2, dtype=torch.float64)
        with measuring(self.family.trainable().values()), self.accelerator.autocast():
            for level in range(self.levels):
                quantile = (level + 0.5) / self.levels
                for batches in self.batches():
                    for batch in batches:
                        loss = self.objective.loss(self.family, batch, quantile=quantile).total
                        sums += torch.tensor([float(loss), batch.weight], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum").cpu()
        return float(sums[0] / sums[1])
