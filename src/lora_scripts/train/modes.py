"""Switching modules between training and measuring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def measuring(modules: Iterable[nn.Module]) -> Iterator[None]:
    """No dropout and no gradients for a while; every submodule goes back to the mode it had."""
    import torch

    modes = {child: child.training for module in modules for child in module.modules()}
    for child in modes:
        child.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode
