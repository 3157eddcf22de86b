"""What several processes have to agree on; with one process nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Together:
    """Sums and agreements over the processes that train together."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.alone = accelerator.num_processes == 1

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over the processes."""
        return value if self.alone else self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")

    def any(self, wish: bool) -> bool:
        """Say whether one of the processes wishes it: a signal, or a full memory, may reach them in different steps."""
        return wish if self.alone else self.sum(torch.tensor(float(wish))).item() > 0

    def least(self, value: int) -> int:
        """Return the smallest of the processes' numbers."""
        if self.alone:
            return value
        return int(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).min().item())

    def most(self, value: int) -> int:
        """Return the largest of the processes' numbers."""
        return -self.least(-value)

    def join(self, text: str) -> str:
        """Return the processes' texts, one after the other."""
        if self.alone:
            return text
        from torch import distributed

        every: list[str] = [""] * self.accelerator.num_processes
        distributed.all_gather_object(every, text)
        return ", ".join(filter(None, every))

    def sum_gradients(self, tensors: Sequence[torch.nn.Parameter]) -> None:
        """Add up the processes' gradients, all tensors in one message."""
        if self.alone:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in tensors]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for p, part in zip(tensors, flat.split([p.numel() for p in tensors]), strict=True):
            p.grad = part.view_as(p)
