"""Direct preference optimisation (arXiv:2305.18290, equation 7): the better answer gains on the worse one.

    -log sigmoid(beta * ((log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))))

p_ref is the adapter that training starts from (`init_lora`), or the base alone where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from lora_scripts.contracts import Batch, Loss, Speaker

LEARNS = frozenset({"pair"})


class Config(BaseModel):
    """The keys of the run config this objective reads, by their own names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float = 0.1
    sft_weight: float = 0.0


class Dpo:
    """The objective; see `contracts.Objective`."""

    def __init__(self, config: Config):
        self.config = config

    def loss(self, family: Speaker, batch: Batch, *, quantile: float | None = None) -> Loss:
        """Return the weighted sum over pairs; `sft_weight` adds the chosen answer's mean loss a token."""
        import torch
        from torch.nn import functional

        tensors = batch.tensors
        tokens = family.token_logprobs(tensors)
        sequences = tensors["sequences"].to(tokens.device)
        zeros = torch.zeros(2 * len(batch.ids), dtype=tokens.dtype, device=tokens.device)
        sums = zeros.index_add(0, sequences, tokens)
        gains = (sums - tensors["reference"].to(sums)).view(-1, 2)
        rows = -functional.logsigmoid(self.config.beta * (gains[:, 0] - gains[:, 1]))
        if self.config.sft_weight:
            counts = zeros.index_add(0, sequences, torch.ones_like(tokens)).view(-1, 2)
            rows = rows - self.config.sft_weight * sums.view(-1, 2)[:, 0] / counts[:, 0]
        return Loss(total=(rows * batch.weights.to(rows)).sum())

    def levels(self, wanted: int) -> Sequence[float | None]:
        """Text has no noise: one measurement."""
        return (None,)

    def reading(self, loss: float) -> Mapping[str, float]:
        """Nothing: this loss has no other name."""
        return {}


def build(config: Config) -> Dpo:
    """Return the objective."""
    return Dpo(config)
