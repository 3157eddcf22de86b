"""Schedule-free AdamW against its formula; its average in place of the live weights, and back to the bit."""

from __future__ import annotations

import pytest
import torch

from lora_scripts import registry
from lora_scripts.events import Stepped
from lora_scripts.train import averaging
from tests.train import toy

pytest.importorskip("pytorch_optimizer", reason="schedule_free is in the extra optimizers")
BETA1, BETA2, EPSILON, DECAY = 0.8, 0.9, 1e-6, 0.05


def quadratic(rates):
    """Train x -> |x - 1|^2 and return the tensor, its optimizer, and x, y, z after arXiv:2405.15682, algorithm 1."""
    module = registry.load("optimizers", "schedule_free")
    tensor = torch.nn.Parameter(torch.tensor([[0.0, 2.0, -3.0]], dtype=torch.float64))
    config = module.Config(beta1=BETA1, beta2=BETA2, epsilon=EPSILON, weight_decay=DECAY)
    optimizer = module.build([{"params": [tensor], "lr": 1.0, "component": "a"}], config)
    x = z = y = tensor.detach().clone()
    squares, weights, largest = torch.zeros_like(x), 0.0, 0.0
    for number, rate in enumerate(rates, 1):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (tensor - 1).square().sum().backward()
        optimizer.step()
        gradient = 2 * (y - 1)
        squares = BETA2 * squares + (1 - BETA2) * gradient**2
        step = gradient / ((squares / (1 - BETA2**number)).sqrt() + EPSILON)
        z = z - rate * (step + DECAY * y)
        largest = max(largest, rate)
        weights += largest**2
        share = largest**2 / weights
        x = (1 - share) * x + share * z
        y = (1 - BETA1) * z + BETA1 * x
    return tensor, optimizer, x, y


def test_it_follows_the_paper():
    """The warm-up is the loop's: its rates are the paper's, and count by the square of the largest so far."""
    tensor, optimizer, x, y = quadratic([0.02, 0.04, 0.06, 0.08, 0.08, 0.08])
    live = tensor.detach().clone()
    assert (live - y).abs().max() < 1e-12 and (x - y).abs().max() > 1e-3
    with averaging.applied(optimizer):
        assert (tensor - x).abs().max() < 1e-12
        assert not optimizer.param_groups[0]["train_mode"]
        with averaging.applied(optimizer):
            assert (tensor - x).abs().max() < 1e-12
        assert not optimizer.param_groups[0]["train_mode"]
    assert torch.equal(tensor, live) and optimizer.param_groups[0]["train_mode"]


def test_looking_at_the_average_changes_no_bit_of_the_run(tmp_path):
    def looking(event):
        if isinstance(event, Stepped):
            with averaging.applied(seen.optimizer), torch.no_grad():
                seen.tensors[0].mul_(3)

    plain, _, _ = toy.build(tmp_path, optimizer="schedule_free")
    plain.fit()
    seen, _, hub = toy.build(tmp_path, optimizer="schedule_free")
    hub.listeners.append(looking)
    seen.fit()
    assert torch.equal(toy.weights(seen), toy.weights(plain))


def test_only_it_keeps_averages(tmp_path):
    keeps = [
        name
        for name in registry.names("optimizers")
        if name != "adamw8bit" and averaging.averages(toy.build(tmp_path, optimizer=name)[0].optimizer)
    ]
    assert keeps == ["schedule_free"]
