"""Learn the answers: minus the log-probability of every target token, weighted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from lora_scripts.contracts import Batch, Loss, Speaker

LEARNS = frozenset({"chat", "completion", "text"})


class Config(BaseModel):
    """This objective reads no keys of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Sft:
    """The objective; see `contracts.Objective`."""

    def loss(self, family: Speaker, batch: Batch, *, quantile: float | None = None) -> Loss:
        """Return the sum over target tokens of weight x -log p; the batch's weight is the sum of those weights."""
        found = family.token_logprobs(batch.tensors)
        rows = batch.weights[batch.tensors["owners"]][batch.tensors["sequences"]]
        weights = (batch.tensors["weights"] * rows).to(found)
        return Loss(total=-(found * weights).sum())

    def levels(self, wanted: int) -> Sequence[float | None]:
        """Text has no noise: one measurement."""
        return (None,)

    def reading(self, loss: float) -> Mapping[str, float]:
        """Return the perplexity: what a mean loss a token is the logarithm of."""
        return {"perplexity": math.exp(min(loss, 50.0))}


def build(config: Config) -> Sft:
    """Return the objective."""
    return Sft()
