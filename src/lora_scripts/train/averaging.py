"""Averaged weights (EMA): often better than the last ones, and what is exported when they are on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class Average:
    """Exponential moving average of tensors, bias-corrected at the start as min(decay, (1 + n) / (10 + n))."""

    def __init__(self, tensors: Sequence[torch.nn.Parameter], decay: float):
        self.tensors, self.decay = list(tensors), decay
        self.values = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the live tensors after step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for value, tensor in zip(self.values, self.tensors, strict=True):
            value.lerp_(tensor.detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in place of the live tensors for a while."""
        live = [tensor.detach().clone() for tensor in self.tensors]
        self._copy(self.values)
        try:
            yield
        finally:
            self._copy(live)

    @torch.no_grad()
    def _copy(self, values: Sequence[torch.Tensor]) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.copy_(value)
