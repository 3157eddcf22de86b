"""The training loop: the same for every family and objective.

A step collects micro-batches. The step's whole weight, over all processes, is known before the first backward pass
and divides every loss there; so unequal micro-batches add up exactly, and so do several processes, whose gradients
are summed once a step. Dropout is seeded by (seed, step, micro-batch of the whole step); all other randomness comes
with the batch.
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
from lora_scripts.data.order import seed_of
from lora_scripts.errors import NumericsError
from lora_scripts.events import Command, EpochEnded, Event, Finished, Started, Stepped
from lora_scripts.train.averaging import Average
from lora_scripts.train.memory import used_bytes


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
        batches: step (from 0) -> this process's micro-batches.
        emit: tells an event to the listeners and returns their commands.
        buffers: tensors of the adapter that are not trained and not known without it, by component, then by name.
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
        batches: Callable[[int], Sequence[Batch]],
        accelerator: Any,
        course: Course,
        emit: Callable[[Event], set[Command]],
        average: Average | None = None,
        buffers: Mapping[str, Mapping[str, torch.Tensor]] = MappingProxyType({}),
    ):
        self.family, self.objective, self.parameters = family, objective, parameters
        self.optimizer, self.rates, self.factor, self.batches = optimizer, rates, factor, batches
        self.accelerator, self.course, self.emit, self.average = accelerator, course, emit, average
        self.buffers = buffers
        self.tensors = [p for group in parameters.values() for p in group.values()]
        self.done = 0
        self.epoch_losses: list[float] = []

    def fit(self, rehearsal: Sequence[Batch] = ()) -> Finished:
        """Rehearse the largest batch, then run the steps that are left; a stop is obeyed after a whole step."""
        self.emit(Started(self.done, self.course.total, -(-self.course.total // self.course.steps_per_epoch)))
        if rehearsal and self.done < self.course.total:
            self._accumulate(rehearsal, 1.0)
            self.optimizer.zero_grad()
        stopped = False
        while self.done < self.course.total and not stopped:
            commands = self.emit(self.step(self.batches(self.done)))
            if self.done % self.course.steps_per_epoch == 0 or self.done == self.course.total:
                mean = sum(self.epoch_losses) / len(self.epoch_losses)
                commands |= self.emit(EpochEnded(-(-self.done // self.course.steps_per_epoch), self.done, mean))
                self.epoch_losses = []
            stopped = self._any(Command.STOP in commands)
        finished = Finished(self.done, self.course.total, self.done < self.course.total)
        self.emit(finished)
        return finished

    def step(self, micro_batches: Sequence[Batch]) -> Stepped:
        """One optimizer step over this process's share of the step."""
        started = time.perf_counter()
        total = self._sum(torch.tensor(sum(batch.weight for batch in micro_batches), dtype=torch.float64)).item()
        loss = self._sum(self._accumulate(micro_batches, total)).item()
        self._sum_gradients()
        factor = self.factor(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["component"]] * factor
        norm = self.accelerator.clip_grad_norm_(self.tensors, self.course.max_norm or math.inf).item()
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.accelerator.scaler is not None):
            ids = [name for batch in micro_batches for name in batch.ids]
            raise NumericsError("train.not_finite", step=self.done + 1, loss=loss, norm=norm, ids=", ".join(ids[:8]))
        before = [p.detach().clone() for p in self.tensors]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.done)
        moved = torch.stack([(p.detach() - b).norm() for p, b in zip(self.tensors, before, strict=True)]).norm().item()
        self.epoch_losses.append(loss)
        rates = {group["component"]: group["lr"] for group in self.optimizer.param_groups}
        epoch = self.done // self.course.steps_per_epoch + 1
        self.done += 1
        seconds = time.perf_counter() - started
        return Stepped(self.done, epoch, loss, rates, norm, moved, seconds, used_bytes(self.accelerator.device))

    def _accumulate(self, micro_batches: Sequence[Batch], total: float) -> torch.Tensor:
        """Add the gradients of every micro-batch, divided by the step's weight; return the loss, shape ()."""
        loss = torch.zeros((), device=self.accelerator.device, dtype=self.tensors[0].dtype)
        for number, batch in enumerate(micro_batches):
            # Its place among the micro-batches of all processes: `data.order.micro_batches` deals them in turn.
            place = number * self.accelerator.num_processes + self.accelerator.process_index
            torch.manual_seed(seed_of(self.course.seed, self.done, place))
            with self.accelerator.autocast():
                share = self.objective.loss(self.family, batch).total / total
            self.accelerator.backward(share)
            loss = loss + share.detach().to(loss)
        return loss

    def _any(self, wish: bool) -> bool:
        """Say whether one of the processes wishes it: a signal may reach them in different steps."""
        return self._sum(torch.tensor(float(wish))).item() > 0

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over the processes."""
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")

    def _sum_gradients(self) -> None:
        """Add up the processes' gradients, all tensors in one message."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.tensors]
        flat = self._sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for p, part in zip(self.tensors, flat.split([p.numel() for p in self.tensors]), strict=True):
            p.grad = part.view_as(p)
