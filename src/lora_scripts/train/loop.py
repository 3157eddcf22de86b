"""The training loop: the same for every family and objective.

A step collects micro-batches. The step's whole weight, over all processes, is known before the first backward pass
and divides every loss there; so unequal micro-batches add up exactly, and so do several processes, whose gradients
are summed once a step. Dropout is seeded by (seed, step, micro-batch of the whole step); all other randomness comes
with the batch. A step that finds the memory full is taken again in smaller micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from lora_scripts.contracts import Batch, Objective
from lora_scripts.errors import NumericsError
from lora_scripts.events import Command, EpochEnded, Event, Finished, Started, Stepped
from lora_scripts.train.averaging import Average
from lora_scripts.train.gradients import Gradients
from lora_scripts.train.loader import Loader
from lora_scripts.train.memory import used_bytes
from lora_scripts.train.together import Together

# Halvings of a float16 loss scale that one step may take: more than there are exponents.
MOST_SCALES = 40


@dataclass(frozen=True)
class Course:
    """How far a run goes: optimizer steps in all, steps an epoch, clipping norm, seed."""

    total: int
    steps_per_epoch: int
    max_norm: float | None
    seed: int


class Trainer:
    """Runs steps and tells listeners; knows nothing of what is learned.

    Args:
        family: handed to the objective as it is.
        parameters: trained tensors by component, then by name.
        optimizer: over one group a component, each with "lr" and "component".
        rates: peak learning rate by component.
        factor: step (from 0) -> what the peak rates are multiplied by.
        batches: step (from 0) -> this process's micro-batches, and smaller ones where they do not fit.
        emit: tells an event to the listeners and returns their commands.
        buffers: tensors of the adapter that are not trained and not known without it, by component, then by name.
        recover: called with the trainer and the error of a step that is not finite; whether to go on.
        in_step: see `Gradients`.
    """

    def __init__(
        self,
        family: Any,
        objective: Objective,
        parameters: Mapping[str, Mapping[str, torch.nn.Parameter]],
        *,
        optimizer: Any,
        rates: Mapping[str, float],
        factor: Callable[[int], float],
        batches: Loader,
        accelerator: Any,
        course: Course,
        emit: Callable[[Event], set[Command]],
        average: Average | None = None,
        buffers: Mapping[str, Mapping[str, torch.Tensor]] = MappingProxyType({}),
        recover: Callable[[Any, NumericsError], bool] = lambda trainer, error: False,
        in_step: bool = False,
    ):
        self.family, self.objective, self.parameters = family, objective, parameters
        self.optimizer, self.rates, self.factor, self.batches = optimizer, rates, factor, batches
        self.accelerator, self.course, self.emit, self.average = accelerator, course, emit, average
        self.buffers, self.recover, self.together = buffers, recover, Together(accelerator)
        more: Any = {"seed": course.seed, "emit": emit, "in_step": in_step}
        self.gradients = Gradients(family, objective, batches, accelerator, **more)
        self.tensors = [p for group in parameters.values() for p in group.values()]
        self.done, self.slowed = 0, 1.0
        self.epoch_losses: list[float] = []

    def fit(self, rehearsal: Sequence[Batch] = ()) -> Finished:
        """Rehearse the largest batch, then run the steps that are left; a stop is obeyed after a whole step."""
        self.emit(Started(self.done, self.course.total, -(-self.course.total // self.course.steps_per_epoch)))
        if rehearsal and self.done < self.course.total:
            self.gradients.gather(self.done, rehearsal, self.batches.largest, self.tensors[0])
            self.optimizer.zero_grad()
        stopped = False
        while self.done < self.course.total and not stopped:
            commands = self._advance()
            at_end = self.done % self.course.steps_per_epoch == 0 or self.done == self.course.total
            if at_end and self.epoch_losses:
                mean = sum(self.epoch_losses) / len(self.epoch_losses)
                commands |= self.emit(EpochEnded(-(-self.done // self.course.steps_per_epoch), self.done, mean))
                self.epoch_losses = []
            stopped = self.together.any(Command.STOP in commands)
        finished = Finished(self.done, self.course.total, self.done < self.course.total)
        self.emit(finished)
        return finished

    def _advance(self) -> set[Command]:
        """One step, and what the listeners ask for; one that is not finite is answered by `recover`."""
        try:
            event = None
            # A loss scale that was too large is lowered and the same step taken again.
            for _ in range(MOST_SCALES):
                event = event or self.step(self.batches(self.done))
            if event is None:
                raise NumericsError("train.scale_exhausted", step=self.done + 1, times=MOST_SCALES)
            return self.emit(event)
        except NumericsError as error:
            if not self.recover(self, error):
                raise
            return set()

    def step(self, micro_batches: Sequence[Batch]) -> Stepped | None:
        """One optimizer step over this process's share of it; None where float16 overflowed and nothing changed."""
        started = time.perf_counter()
        gathered = self.gradients.gather(self.done, micro_batches, lambda: self.batches(self.done), self.tensors[0])
        loss = self.together.sum(gathered.loss()).item()
        self.together.sum_gradients(self.tensors)
        factor = self.factor(self.done) * self.slowed
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["component"]] * factor
        norm = self.accelerator.clip_grad_norm_(self.tensors, self.course.max_norm or math.inf).item()
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.accelerator.scaler is not None):
            ids = self.together.join(gathered.blamed(self.together.alone)) or gathered.blamed()
            raise NumericsError("train.not_finite", step=self.done + 1, loss=loss, norm=norm, ids=ids)
        before = [p.detach().clone() for p in self.tensors]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:
            return None
        moved = torch.stack([(p.detach() - b).norm() for p, b in zip(self.tensors, before, strict=True)]).norm().item()
        if self.average is not None:
            self.average.update(self.done)
        self.epoch_losses.append(loss)
        rates = {group["component"]: group["lr"] for group in self.optimizer.param_groups}
        epoch = self.done // self.course.steps_per_epoch + 1
        self.done += 1
        seconds = time.perf_counter() - started
        return Stepped(self.done, epoch, loss, rates, norm, moved, seconds, used_bytes(self.accelerator.device))
