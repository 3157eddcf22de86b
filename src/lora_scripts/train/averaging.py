"""Averaged weights: often better than the last ones, and what is measured, previewed and exported when they are on.

An average is either ours (EMA) or the optimizer's own, which its `eval()` puts in place; a run has at most one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
        with kept(self.tensors):
            _copy(self.values, self.tensors)
            yield


def averages(optimizer: Any) -> bool:
    """Say whether an optimizer keeps averages of its own: it has `train()`, `eval()` and groups that know which."""
    groups = optimizer.param_groups
    return callable(getattr(bare(optimizer), "eval", None)) and all("train_mode" in group for group in groups)


@contextmanager
def applied(optimizer: Any) -> Iterator[None]:
    """Put the optimizer's own averages in place for a while; afterwards every bit is as it was.

    Its `train()` would only compute the old values again, up to rounding; so they are kept and copied back.
    """
    optimizer = bare(optimizer)
    modes = [group["train_mode"] for group in optimizer.param_groups]
    with kept([tensor for group in optimizer.param_groups for tensor in group["params"]]):
        try:
            with torch.no_grad():
                optimizer.eval()
            yield
        finally:
            for group, mode in zip(optimizer.param_groups, modes, strict=True):
                group["train_mode"] = mode


@contextmanager
def kept(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Whatever is done to the tensors meanwhile, they have their values back at the end."""
    live = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        _copy(live, tensors)


def bare(optimizer: Any) -> Any:
    """Return the torch optimizer inside Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


@torch.no_grad()
def _copy(values: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
