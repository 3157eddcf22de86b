"""Hashes that name encoded pieces: of encoders' weights and settings, and of what was encoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def of(*parts: object) -> str:
    """sha256 over the parts as text."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def settings(network: Any) -> str:
    """A network's settings as text, without names and versions of what wrote them."""
    found = network.config if isinstance(network.config, Mapping) else network.config.to_dict()
    hidden = {"architectures", "dtype", "transformers_version"}
    known = {key: value for key, value in found.items() if not key.startswith("_") and key not in hidden}
    return json.dumps(known, sort_keys=True, default=str)


def modules(found: Sequence[nn.Module], said: str) -> str:
    """sha256 over the bytes of all weights, by name, and what else decides the result."""
    import torch

    digest = hashlib.sha256(said.encode())
    for module in found:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
