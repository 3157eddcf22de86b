"""One rank and one whole alpha for all pairs: what every reader of language models' LoRAs agrees on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from lora_scripts.adapters.adapter import Adapter

# Ollama reads lora_alpha into 32 bits.
MOST_ALPHA = 2**31 - 1


def uniform(adapter: Adapter) -> Adapter:
    """Give all pairs the largest rank, by zeros that add nothing, and one alpha; what differs is folded into `up`.

    The alpha is the one that most pairs have, where that is a whole number above 0: readers take 0 as "scale 1", and
    some read no fractions. Else it is the rank. An adapter that is uniform keeps every bit.

    Returns:
        Float32 pairs on the CPU, sorted by path; what a kind has beside its pairs stays as it is.
    """
    pairs = [pair for part in adapter.pairs.values() for pair in part.values()]
    rank = max(pair.rank for pair in pairs)
    alphas = Counter(float(pair.alpha) * (rank / pair.rank) for pair in pairs)
    common = min(alphas, key=lambda alpha: (-alphas[alpha], alpha))
    alpha = common if common.is_integer() and 0 < common <= MOST_ALPHA else float(rank)
    made = {
        component: {path: _like(pair, rank, alpha) for path, pair in sorted(part.items())}
        for component, part in sorted(adapter.pairs.items())
    }
    return Adapter(made, adapter.meta)


def _like(pair: Any, rank: int, alpha: float) -> Any:
    import torch

    down, up = pair.down.detach().float().cpu(), pair.up.detach().float().cpu()
    fold = (pair.alpha * rank) / (alpha * pair.rank)
    if fold != 1:
        up = up * fold
    if pair.rank < rank:
        down = torch.cat([down, down.new_zeros(rank - pair.rank, *down.shape[1:])])
        up = torch.cat([up, up.new_zeros(up.shape[0], rank - pair.rank, *up.shape[2:])], dim=1)
    return replace(pair, down=down, up=up, alpha=alpha)


def settings(adapter: Adapter) -> tuple[int, int]:
    """Return the rank and the alpha that all pairs of a uniform adapter have."""
    found: set[tuple[int, float]] = {(p.rank, p.alpha) for part in adapter.pairs.values() for p in part.values()}
    ((rank, alpha),) = found
    return rank, int(alpha)
