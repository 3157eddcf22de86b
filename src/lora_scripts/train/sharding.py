"""A frozen base that several processes hold together (FSDP2, torch's `fully_shard`).

Each keeps a part of every block, and gathers a block's weights for as long as it runs, forward and backward. Blocks are
the elements of a network's outermost lists of layers, where nearly all of its weights lie. What is around them, and the
low-rank pairs, every process has whole; so gradients, checkpoints and exports are those of a run that does not shard.
Gathering takes all processes: each must run as many forward passes as the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import ConfigError, Problem

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_scripts.config.schema import RunConfig

# Their reference is measured by each process for its share of the examples, before the first step.
_MEASURE_ALONE = ("dpo", "kto")


def refuse(config: RunConfig, objective: str) -> None:
    """Refuse what does not go together with a base held in parts.

    Raises:
        ConfigError: every reason at once.
    """
    if not config.shard_base:
        return
    wrong = {
        "base_precision": config.base_precision in ("fp8", "nf4"),
        "offload_blocks": config.offload_blocks > 0,
        "adapter": config.adapter.options.get("start") == "pissa",
        "objective": objective in _MEASURE_ALONE,
    }
    problems = [Problem("train.shard_with", {"key": key}) for key, found in wrong.items() if found]
    if problems:
        raise ConfigError(problems=problems)


def shard_first(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Share out the first network; encoders beside it, which work for one process at a time, are whole on each."""
    first, *others = networks
    shard(first, device)
    for network in others:
        network.to(device)


def shard(network: nn.Module, device: torch.device) -> int:
    """Share a network's frozen blocks out over all processes, and move the rest to the device.

    Args:
        network: with its low-rank pairs in place, anywhere; only one block at a time is whole on the device.

    Returns:
        How many blocks were shared out.
    """
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    whole = {parameter for parameter in network.parameters() if parameter.requires_grad}
    found = [block for block in blocks(network) if any(p not in whole for p in block.parameters())]
    for block in found:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole & {*block.parameters()})
    inside = {id(module) for block in found for module in block.modules()}
    for module in network.modules():
        for parameter in module._parameters.values():
            if parameter is not None and (id(module) not in inside or parameter in whole):
                parameter.data = parameter.data.to(device)
        module._buffers.update({k: v.to(device) for k, v in module._buffers.items() if v is not None})
    return len(found)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of the outermost lists of layers."""
    from torch import nn

    for child in network.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)


def local_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters that this process holds."""
    held = 0
    for parameter in network.parameters():
        part: Any = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        held += part.nbytes
    return held
