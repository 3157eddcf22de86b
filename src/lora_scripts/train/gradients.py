"""A step's gradients, in micro-batches that fit into the memory.

Where the memory is full, the same step is taken again in smaller micro-batches with the same random numbers. It stays
the same set of visits, so the result does too, up to the rounding of sums (and to the bit that of a run which began
with the smaller size, where it happens in the first step). The size that fitted is part of the run's state.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_scripts import units
from lora_scripts.contracts import Batch, Objective
from lora_scripts.data.order import seed_of
from lora_scripts.errors import MachineError
from lora_scripts.events import Event, Shrunk
from lora_scripts.train.loader import Loader
from lora_scripts.train.memory import free_bytes, used_bytes
from lora_scripts.train.together import Together

# What allocators say that have no class of their own for it.
_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
_NAMED = 8


@dataclass(frozen=True)
class Gathered:
    """What was added up: each micro-batch's share in the loss, shape (), and the micro-batches."""

    shares: Sequence[torch.Tensor]
    micro_batches: Sequence[Batch]

    def loss(self) -> torch.Tensor:
        """Return this process's part of the step's loss."""
        return sum(self.shares[1:], self.shares[0])

    def blamed(self, alone: bool = True) -> str:
        """Name the examples whose loss is not finite; all, where their sum or a gradient is not.

        Args:
            alone: no other process may be to blame.
        """
        pairs = zip(self.shares, self.micro_batches, strict=True)
        bad = [batch for share, batch in pairs if not torch.isfinite(share)]
        named = bad or (self.micro_batches if alone else ())
        return ", ".join([name for batch in named for name in batch.ids][:_NAMED])


class Gradients:
    """Adds up the gradients of a step.

    Args:
        family: handed to the objective as it is.
        batches: makes the micro-batches of a step, and smaller ones.
        seed: of dropout, together with the step and the place of the micro-batch in it.
        in_step: every process runs as many passes as the others, some of them for nothing: they gather the base's
            weights together.
    """

    def __init__(
        self,
        family: Any,
        objective: Objective,
        batches: Loader,
        accelerator: Any,
        *,
        seed: int,
        emit: Callable[[Event], object],
        in_step: bool = False,
    ):
        self.family, self.objective, self.batches = family, objective, batches
        self.accelerator, self.seed, self.emit = accelerator, seed, emit
        self.together, self.in_step = Together(accelerator), in_step

    def gather(
        self, step: int, micro_batches: Sequence[Batch], again: Callable[[], Sequence[Batch]], like: torch.Tensor
    ) -> Gathered:
        """Run every micro-batch forward and backward, divided by the weight of the step over all processes.

        Args:
            step: optimizer steps done.
            again: makes the micro-batches anew, after they were made smaller.
            like: what a loss is held as.

        Raises:
            MachineError: a single example does not fit.
        """
        while True:
            total = self.together.sum(torch.tensor(sum(b.weight for b in micro_batches), dtype=torch.float64)).item()
            shares = self._accumulate(step, micro_batches, total, like)
            if not self.together.any(shares is None):
                return Gathered(shares or [torch.zeros_like(like.flatten()[0])], micro_batches)
            self._shrink(step, micro_batches, full=shares is None)
            micro_batches = again()

    def _accumulate(
        self, step: int, micro_batches: Sequence[Batch], total: float, like: torch.Tensor
    ) -> list[torch.Tensor] | None:
        """Return each micro-batch's share of the loss, or None where the memory was full."""
        shares = []
        # Agreed on before the first pass: in the middle of one, the processes speak of weights.
        idle = self.together.most(len(micro_batches)) - len(micro_batches) if self.in_step else 0
        try:
            for number, batch in enumerate(micro_batches):
                # Its place among the micro-batches of all processes: `data.order.micro_batches` deals them in turn.
                place = number * self.accelerator.num_processes + self.accelerator.process_index
                torch.manual_seed(seed_of(self.seed, step, place))
                with self.accelerator.autocast():
                    share = self.objective.loss(self.family, batch).total / total
                self.accelerator.backward(share)
                shares.append(share.detach().to(like))
            self._run_idle(micro_batches, idle)
        except (RuntimeError, MemoryError) as error:
            # The others wait for this process in the middle of a pass, and cannot begin anew.
            if not is_full(error) or self.in_step:
                raise
            return None
        return shares

    def _run_idle(self, micro_batches: Sequence[Batch], idle: int) -> None:
        """Run passes that count nothing, until this process has run as many as the others."""
        for _ in range(idle):
            batch = micro_batches[0] if micro_batches else self.batches.largest()[0]
            with self.accelerator.autocast():
                nothing = self.objective.loss(self.family, batch).total * 0
            self.accelerator.backward(nothing)

    def _shrink(self, step: int, micro_batches: Sequence[Batch], *, full: bool) -> None:
        """Let go of the attempt, and halve the micro-batches of all processes."""
        for tensor in self.family.trainable().values():
            tensor.zero_grad(set_to_none=True)
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        before = self.batches.batch_size
        mine = max((len(batch.ids) for batch in micro_batches), default=0) // 2 if full else before
        size = self.together.least(mine)
        if size == 0:
            device = self.accelerator.device
            used, free = (units.format_bytes(measure(device)) for measure in (used_bytes, free_bytes))
            ids = ", ".join(name for batch in micro_batches for name in batch.ids[:1])
            raise MachineError("train.memory_full", step=step + 1, ids=ids, used=used, free=free)
        self.batches.shrink(size)
        self.emit(Shrunk(step, before, size))


def is_full(error: BaseException) -> bool:
    """Say whether an error means that the memory does not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in _SAYINGS)
