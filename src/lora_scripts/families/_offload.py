"""Blocks of a frozen network that wait in main memory, and are fetched onto the device ahead of their use.

A block is a piece that gradient checkpointing computes again as a whole: while it runs, in the forward pass or again in
the backward pass, its weights are on the device; at any other time they are not. diffusers' own group offloading moves
pairs that train along with the weights beside them, and its groups are larger than what checkpointing computes again,
which then finds weights on the wrong device; so this is written here.

Weights are never written, so nothing is ever copied back, and what the backward pass still needs of a fetched copy, it
keeps alive itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any

from lora_scripts.contracts import Placement
from lora_scripts.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# What diffusers' networks hand to checkpointing one by one.
BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
ATTRIBUTE = "lora_scripts_offload"

Fetch = Callable[[Sequence["Tensor"]], Callable[[], Sequence["Tensor"]]]
"""Begins to copy tensors to the device; what it returns waits for the copies and gives them."""


def install(network: nn.Module, placement: Placement) -> nn.Module:
    """Move a frozen network to the device, except `offload_blocks` of its blocks, which wait and are fetched.

    Raises:
        ConfigError: the device is a CPU, nothing is computed again, or the network has fewer blocks.
    """
    wanted = placement.offload_blocks
    if not wanted:
        return network.to(placement.device)
    if placement.device.type == "cpu":
        raise ConfigError("config.offload_needs_gpu", value=wanted)
    if not placement.gradient_checkpointing:
        raise ConfigError("config.offload_needs_checkpointing", value=wanted)
    if wanted > len(blocks(network)):
        raise ConfigError("config.offload_too_many", value=wanted, blocks=len(blocks(network)))
    waiting = largest(network, wanted)
    _move_rest(network, waiting, placement.device)
    _pin(waiting)
    setattr(network, ATTRIBUTE, Offload(blocks(network), waiting, _Stream(placement.device).fetch))
    return network


def settle(network: nn.Module, device: torch.device) -> None:
    """Move what trains to the device: pairs are put where the weights beside them are, and some of those wait."""
    if hasattr(network, ATTRIBUTE):
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(device)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the network's blocks, in the order of their paths."""
    return [module for module in network.modules() if type(module).__name__ in BLOCKS]


def largest(network: nn.Module, count: int) -> list[nn.Module]:
    """Return the `count` blocks that hold most bytes."""
    return sorted(blocks(network), key=lambda block: -size(block))[:count]


def size(block: nn.Module) -> int:
    """Return the bytes of a block's frozen tensors."""
    return sum(tensor.nbytes for _, _, tensor in _slots(block))


def _slots(block: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return where a block's frozen tensors are kept, and what is there."""
    found = []
    for module in block.modules():
        for kept in (module._parameters, module._buffers):
            found += [(kept, name, t) for name, t in kept.items() if t is not None and not t.requires_grad]
    return found


def _move_rest(network: nn.Module, waiting: Sequence[nn.Module], device: torch.device) -> None:
    inside = {id(module) for block in waiting for module in block.modules()}
    for module in network.modules():
        if id(module) not in inside:
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.data = parameter.data.to(device)
            module._buffers.update({k: v.to(device) for k, v in module._buffers.items() if v is not None})


def _pin(waiting: Sequence[nn.Module]) -> None:
    """Lock the waiting tensors in memory, which copies beside computation need."""
    from torch import nn

    for block in waiting:
        for kept, name, tensor in _slots(block):
            pinned = tensor.detach().contiguous().pin_memory()
            kept[name] = nn.Parameter(pinned, requires_grad=False) if isinstance(tensor, nn.Parameter) else pinned


@dataclass
class _Waiting:
    """One block: where the tensors that wait belong, the tensors, how often it runs, and copies under way."""

    slots: list[tuple[dict[str, Any], str, Tensor]]
    running: int = 0
    coming: Callable[[], Sequence[Tensor]] | None = None


@dataclass
class Offload:
    """Fetches blocks as they are called, each while the one before it runs.

    What comes next is what came next the last time after these two: the forward pass and the backward pass run the
    same blocks in opposite orders, so one alone would not tell.

    Attributes:
        blocks: all of the network's.
        waiting: those that wait.
        fetch: see `Fetch`.
        resident: indices of those that wait and are on the device, or on their way.
        most: how many were, at most.
    """

    blocks: Sequence[nn.Module]
    waiting: Sequence[nn.Module]
    fetch: Fetch
    resident: set[int] = field(default_factory=set)
    most: int = 0
    _blocks: list[_Waiting] = field(default_factory=list)
    _after: dict[tuple[int, int], int] = field(default_factory=dict)
    _last: tuple[int, int] = (-1, -1)
    _expected: int = -1

    def __post_init__(self) -> None:
        away = set(map(id, self.waiting))
        for index, block in enumerate(self.blocks):
            self._blocks.append(_Waiting(_slots(block) if id(block) in away else []))
            block.forward = self._around(index, block.forward)

    def _around(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(module: Any, *args: Any, **kwargs: Any) -> Any:
            self._enter(index)
            try:
                return forward(*args, **kwargs)
            finally:
                # Also when checkpointing leaves a block early, which it does by an exception.
                self._leave(index)

        return MethodType(run, self.blocks[index])

    def _enter(self, index: int) -> None:
        block = self._blocks[index]
        block.running += 1
        if block.running > 1:
            return
        self._begin(index)
        copies = block.coming() if block.coming is not None else ()
        for (kept, name, _), copy in zip(block.slots, copies, strict=True):
            kept[name] = copy
        self._after[self._last] = index
        self._last = (self._last[1], index)
        self._expected = self._after.get(self._last, index)
        for other in self.resident - {index, self._expected}:
            # It was expected and did not come.
            if not self._blocks[other].running:
                self._let_go(other)
        if not self._blocks[self._expected].running:
            self._begin(self._expected)

    def _begin(self, index: int) -> None:
        block = self._blocks[index]
        if block.slots and block.coming is None:
            block.coming = self.fetch([tensor for _, _, tensor in block.slots])
            self.resident.add(index)
            self.most = max(self.most, len(self.resident))

    def _leave(self, index: int) -> None:
        block = self._blocks[index]
        block.running -= 1
        if block.running:
            return
        for kept, name, tensor in block.slots:
            kept[name] = tensor
        # Where the forward pass turns into the backward pass, a block follows itself.
        if index != self._expected:
            self._let_go(index)

    def _let_go(self, index: int) -> None:
        self._blocks[index].coming = None
        self.resident.discard(index)


class _Stream:
    """Copies on a stream of its own, beside what the device computes."""

    def __init__(self, device: torch.device):
        import torch

        self.device, self.stream = device, torch.cuda.Stream(device)

    def fetch(self, tensors: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
        """See `Fetch`."""
        import torch

        with torch.cuda.stream(self.stream):
            copies = [tensor.detach().to(self.device, non_blocking=True) for tensor in tensors]
            done = self.stream.record_event()

        def wait() -> Sequence[Tensor]:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(done)
            for copy in copies:
                # The memory may be given to others only after what is computed with it.
                copy.record_stream(current)
            return copies

        return wait
