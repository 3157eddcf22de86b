"""Held-out loss and the task's own numbers: the same for the same weights, whenever they are measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lora_scripts.contracts import Batch, Objective
from lora_scripts.events import Command, Evaluated, Event, Skipped, Started, Stepped
from lora_scripts.train.modes import measuring


class Evaluate:
    """Measures before the first step, every so many steps, and at the end.

    Args:
        batches: returns the held-out micro-batches without the examples of these ids, the same each time.
        every: steps between measurements.
        levels: quantiles of the noise to measure at.
        scores: measures the task: numbers under "logs", the rest under "details"; under "losses" the weighted loss and
            mass of examples, by id, whose loss was found on the way and need not be measured again.
        averaged: context manager in which the weights to be exported are live.
        emit: where `Evaluated` goes.
        everywhere: every process measures all, and nothing is added up over them.
    """

    def __init__(
        self,
        family: Any,
        objective: Objective,
        accelerator: Any,
        batches: Callable[[Collection[str]], Sequence[Sequence[Batch]]],
        *,
        every: int,
        levels: Sequence[float | None],
        scores: Callable[[], Mapping[str, Any]],
        averaged: Callable[[], AbstractContextManager[None]],
        emit: Callable[[Event], object],
        everywhere: bool = False,
    ):
        self.family, self.objective, self.accelerator, self.batches = family, objective, accelerator, batches
        self.every, self.levels, self.scores, self.emit = every, levels, scores, emit
        self.averaged, self.everywhere = averaged, everywhere
        self.total = 0
        self.latest: Evaluated | None = None

    def __call__(self, event: Event) -> Command | None:
        """Measure when it is time."""
        if isinstance(event, Started):
            self.total = event.total
            if event.step == 0:
                self.tell(0)
        elif isinstance(event, Stepped | Skipped) and (event.step % self.every == 0 or event.step == self.total):
            self.tell(event.step)
        return None

    def tell(self, step: int) -> Evaluated:
        """Measure the weights of `step`, as they would be exported, and tell it."""
        with self.averaged(), measuring(self.family.trainable().values()):
            found = self.scores()
            loss = self.measure(found.get("losses", {}))
        logs = {**self.objective.reading(loss), **found.get("logs", {})}
        self.latest = Evaluated(step, loss, logs, found.get("details", {}))
        self.emit(self.latest)
        return self.latest

    def measure(self, known: Mapping[str, tuple[float, float]]) -> float:
        """Return the weighted mean loss over examples and levels, without dropout or gradients."""
        import torch

        sums = torch.zeros(2, dtype=torch.float64)
        if known and (self.everywhere or self.accelerator.is_main_process):
            sums += torch.tensor(list(known.values()), dtype=torch.float64).sum(0)
        with measuring(self.family.trainable().values()), self.accelerator.autocast():
            for quantile in self.levels:
                for batches in self.batches(known.keys()):
                    for batch in batches:
                        loss = self.objective.loss(self.family, batch, quantile=quantile).total
                        sums += torch.tensor([float(loss), batch.weight], dtype=torch.float64)
        if self.accelerator.num_processes > 1 and not self.everywhere:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum").cpu()
        return float(sums[0] / sums[1])
