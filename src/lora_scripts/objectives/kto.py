"""Kahneman-Tversky optimisation (arXiv:2402.01306, equations 7 and 8): answers that were liked or not, one by one.

    r = log p(answer) - log p_ref(answer)
    z = max(0, mean over the micro-batch of log p - log p_ref of another row's answer to each prompt)
    liked:      1 - sigmoid(beta * (r - z))
    not liked:  1 - sigmoid(beta * (z - r))

z is an estimate of how far the policy has moved and carries no gradient; as in other libraries it is taken over the
micro-batch, so here alone the size of the micro-batch changes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from lora_scripts.contracts import Batch, Loss, Speaker

if TYPE_CHECKING:
    from torch import Tensor

LEARNS = frozenset({"thumb"})


class Config(BaseModel):
    """The keys of the run config this objective reads, by their own names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float = 0.1


class Kto:
    """The objective; see `contracts.Objective`."""

    def __init__(self, config: Config):
        self.config = config

    def loss(self, family: Speaker, batch: Batch, *, quantile: float | None = None) -> Loss:
        """Return the weighted sum over rows."""
        import torch

        tensors = batch.tensors
        tokens = family.token_logprobs(tensors)
        zeros = torch.zeros(2 * len(batch.ids), dtype=tokens.dtype, device=tokens.device)
        sums = zeros.index_add(0, tensors["sequences"].to(tokens.device), tokens)
        gains = (sums - tensors["reference"].to(sums)).view(-1, 2)
        rows = rows_of(gains[:, 0], gains[:, 1].detach(), tensors["liked"].to(sums.device), self.config.beta)
        return Loss(total=(rows * batch.weights.to(rows)).sum())

    def levels(self, wanted: int) -> Sequence[float | None]:
        """Text has no noise: one measurement."""
        return (None,)

    def reading(self, loss: float) -> Mapping[str, float]:
        """Nothing: this loss has no other name."""
        return {}


def rows_of(gains_B: Tensor, mismatched_B: Tensor, liked_B: Tensor, beta: float) -> Tensor:
    """(B,) losses from r, what z is estimated from, and the thumbs."""
    import torch

    reference = mismatched_B.mean().clamp(min=0)
    signs = torch.where(liked_B, 1.0, -1.0).to(gains_B)
    return 1 - torch.sigmoid(beta * signs * (gains_B - reference))


def build(config: Config) -> Kto:
    """Return the objective."""
    return Kto(config)
