"""Muon (kellerjordan.github.io/posts/muon), by pytorch-optimizer: the momentum's nearest orthogonal matrix is the step.

The step is scaled by 0.2 sqrt(max(rows, columns)) (arXiv:2502.16982, eq. 4), so AdamW's rate and decay can be kept. A
pair of a convolution is taken as the matrix it is, output features by all the rest; torch's own Muon refuses it.
Vectors, such as DoRA's magnitudes, have no direction to make orthogonal and learn by AdamW at the same rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch.optim import Optimizer

NEEDS = {"pytorch_optimizer": "optimizers"}


class Config(BaseModel):
    """Options of `optimizer: {name: muon, ...}`.

    `iterations` are Newton-Schulz steps towards the orthogonal matrix; `beta1`, `beta2` and `epsilon` are AdamW's,
    for vectors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    iterations: int = Field(5, ge=1, le=20)
    weight_decay: float = Field(0.01, ge=0, le=10)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)


def build(groups: Sequence[dict[str, Any]], config: Config) -> Optimizer:
    """Return the optimizer over `groups` (each with "params" and "lr"), matrices and vectors apart."""
    from pytorch_optimizer import Muon

    parted: list[dict[str, Any]] = []
    for group in groups:
        matrices = [tensor for tensor in group["params"] if tensor.ndim >= 2]
        vectors = [tensor for tensor in group["params"] if tensor.ndim < 2]
        if matrices:
            parted.append({**group, "params": matrices, "use_muon": True})
        if vectors:
            adam = {"betas": (config.beta1, config.beta2), "eps": config.epsilon, "weight_decay": config.weight_decay}
            parted.append({**group, **adam, "params": vectors, "use_muon": False})
    return Muon(
        parted,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.iterations,
        weight_decay=config.weight_decay,
        use_adjusted_lr=True,
    )
