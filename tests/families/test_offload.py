"""Blocks that wait elsewhere: the same numbers to the last bit, few at a time; refused where it saves nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lora_scripts.adapters.inject import inject
from lora_scripts.contracts import Placement
from lora_scripts.errors import ConfigError
from lora_scripts.families import _held, _offload
from tests import tiny

TARGETS = {"unet": [r".*\.transformer_blocks\.\d+\.attn[12]\.to_[qkv]", r".*\.resnets\.\d+\.conv1"]}
BLOCKS = 12


def network(quantisation: str = "") -> Any:
    unet = copy.deepcopy(tiny.parts()["unet"]).requires_grad_(False)
    if quantisation:
        _held.hold(unet, quantisation)
    unet.enable_gradient_checkpointing()
    return unet.train()


class Copies:
    """Fetches by copying, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Callable[[], Sequence[torch.Tensor]]:
        self.asked += 1
        copies = [tensor.detach().clone() for tensor in tensors]
        return lambda: copies


def gradients(unet: Any, steps: int = 2, offloaded: Sequence[Any] = ()) -> list[torch.Tensor]:
    """Return the outputs of a few steps, and the pairs' gradients."""
    pairs = inject({"unet": unet}, targets=TARGETS, rank=2, alpha=2, dropout=0.0, seed=1).parameters("unet").values()
    generator = torch.Generator().manual_seed(9)
    found = []
    for pair in pairs:
        pair.data.normal_(generator=generator)
    for _ in range(steps):
        x = torch.randn(2, 4, 16, 16, generator=generator)
        made = unet(x, torch.tensor([3, 400]), torch.ones(2, 5, tiny.TEXT_WIDTH)).sample
        made.square().mean().backward()
        found += [made.detach(), *(pair.grad.clone() for pair in pairs)]
        for pair in pairs:
            pair.grad = None
    return found


@pytest.mark.parametrize("quantisation", ["", "fp8"])
@pytest.mark.parametrize("count", [1, 4, BLOCKS])
def test_same_bits_with_few_blocks_at_a_time(count: int, quantisation: str):
    expected = gradients(network(quantisation))
    unet = network(quantisation)
    assert len(_offload.blocks(unet)) == BLOCKS
    waiting = _offload.largest(unet, count)
    fetch = Copies()
    offload = _offload.Offload(_offload.blocks(unet), waiting, fetch)
    home = {id(tensor) for block in waiting for *_, tensor in _offload._slots(block)}
    found = gradients(unet, steps=2)
    assert len(found) == len(expected) > 40
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert 1 <= offload.most <= 2
    assert len(offload.resident) <= 1
    assert fetch.asked >= 2 * count
    # Whatever was fetched is let go of: the blocks hold what waits.
    assert {id(tensor) for block in waiting for *_, tensor in _offload._slots(block)} == home


def test_a_block_computes_with_what_was_fetched():
    """A fetch that brings zeros changes the result, so the copies are what counts."""
    expected = gradients(network(), steps=1)
    unet = network()
    zeros = lambda tensors: lambda: [torch.zeros_like(tensor) for tensor in tensors]  # noqa: E731
    _offload.Offload(_offload.blocks(unet), _offload.largest(unet, 2), zeros)
    assert not torch.equal(gradients(unet, steps=1)[0], expected[0])


def test_what_comes_next_is_fetched_ahead():
    """From the third step on, every block is under way before it is called."""
    unet = network()
    offload = _offload.Offload(_offload.blocks(unet), _offload.blocks(unet), Copies())
    late: list[int] = []
    begin = offload._begin

    def watched(index: int) -> None:
        if offload._blocks[index].running and offload._blocks[index].coming is None:
            late.append(index)
        begin(index)

    offload._begin = watched  # type: ignore[method-assign]
    counts = []
    x = torch.zeros(1, 4, 16, 16, requires_grad=True)
    for _ in range(4):
        late.clear()
        made = unet(x, torch.tensor([3]), torch.ones(1, 5, tiny.TEXT_WIDTH)).sample
        made.mean().backward()
        counts.append(len(late))
    assert counts[0] >= BLOCKS
    assert counts[2:] == [0, 0]


def test_drawing_without_gradients_is_the_same():
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    arguments = (x, torch.tensor([5]), torch.ones(1, 5, tiny.TEXT_WIDTH))
    with torch.no_grad():
        expected = network().eval()(*arguments).sample
        unet = network().eval()
        _offload.Offload(_offload.blocks(unet), _offload.blocks(unet), Copies())
        assert torch.equal(unet(*arguments).sample, expected)


def placement(device: str = "cuda", blocks: int = 3, *, again: bool = True) -> Placement:
    return Placement(
        torch.device(device), torch.float32, torch.float32, gradient_checkpointing=again, offload_blocks=blocks
    )


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (placement("cpu"), "config.offload_needs_gpu", "processor"),
        (placement(again=False), "config.offload_needs_checkpointing", "gradient_checkpointing: true"),
        (placement(blocks=40), "config.offload_too_many", f"at most {BLOCKS}"),
    ],
)
def test_refused_in_words(given: Placement, code: str, said: str):
    with pytest.raises(ConfigError) as raised:
        _offload.install(network(), given)
    assert raised.value.code == code
    assert said in str(raised.value)


@pytest.mark.gpu
def test_on_a_card():
    """Same numbers as on the card alone, with less of it in use."""
    device = torch.device("cuda")
    expected = [tensor.cpu() for tensor in _on(device, 0)]
    torch.cuda.reset_peak_memory_stats()
    found = [tensor.cpu() for tensor in _on(device, BLOCKS)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _on(device: torch.device, blocks: int) -> list[torch.Tensor]:
    unet = _offload.install(network(), placement(blocks=blocks))
    pairs = inject({"unet": unet}, targets=TARGETS, rank=2, alpha=2, dropout=0.0, seed=1).parameters("unet")
    _offload.settle(unet, device)
    assert {pair.device.type for pair in pairs.values()} == {"cuda"}
    found = []
    for seed in range(2):
        x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(device)
        made = unet(x, torch.tensor([3, 400], device=device), torch.ones(2, 5, tiny.TEXT_WIDTH, device=device)).sample
        made.square().mean().backward()
        found += [made.detach(), *(pair.grad for pair in pairs.values())]
    return found
