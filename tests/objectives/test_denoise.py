"""The denoising loss against its formula written out, with masks, regularisation, weights and both targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lora_scripts.contracts import Batch
from lora_scripts.objectives.denoise import Config, build

ROWS, CHANNELS, HEIGHT, WIDTH = 4, 3, 5, 6
SHAPE = (CHANNELS, HEIGHT, WIDTH)


class Drawer:
    """A family whose network multiplies each channel; its pairs add to that."""

    def __init__(self, prediction_type: str = "epsilon", trained: float = 0.0):
        self.prediction_type = prediction_type
        self.alphas_cumprod = torch.linspace(0.999, 0.01, 50, dtype=torch.float64)
        self.base = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
        self.pairs = torch.full((1, 3, 1, 1), trained, dtype=torch.float64, requires_grad=True)
        self.with_pairs, self.asked = True, 0

    def latents(self, batch: Batch) -> torch.Tensor:
        return batch.tensors["clean"]

    def predict(self, noisy_BCHW, timesteps_B, batch: Batch) -> torch.Tensor:
        self.asked += 1
        level = 1 + timesteps_B.view(-1, 1, 1, 1).double() / 50
        return (self.base + self.pairs * self.with_pairs) * noisy_BCHW * level

    @contextmanager
    def without_pairs(self) -> Iterator[None]:
        self.with_pairs = False
        yield
        self.with_pairs = True


def seeds() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(ROWS)]


def batch(mask: torch.Tensor | None = None, regularisation=(), **tensors) -> Batch:
    generator = torch.Generator().manual_seed(9)
    clean = torch.randn((ROWS, *SHAPE), generator=generator, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    tensors |= {} if mask is None else {"mask": mask}
    ids = [str(row) for row in range(ROWS)]
    return Batch(4.5, weights, {"clean": clean, **tensors}, seeds(), ids, regularisation)


def a_mask() -> torch.Tensor:
    mask = torch.rand((ROWS, 1, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(4))
    mask[1] = 1
    mask[2] = (mask[2] > 0.8).float()
    return mask


def written_out(family: Drawer, config: Config, made: Batch) -> float:
    """Sum over rows and pixels, one number at a time."""
    total = 0.0
    for row, generator in enumerate(seeds()):
        t = int(torch.randint(50, (1,), generator=generator))
        alpha, sigma = family.alphas_cumprod[t].sqrt(), (1 - family.alphas_cumprod[t]).sqrt()
        noise = torch.randn(SHAPE, generator=generator).double()
        clean = made.tensors["clean"][row]
        noisy = alpha * clean + sigma * noise
        target = noise if family.prediction_type == "epsilon" else alpha * noise - sigma * clean
        level = 1 + t / 50
        if config.prior == "base" and made.regularisation[row]:
            target = family.base[0] * noisy * level
        said = (family.base + family.pairs)[0].detach() * noisy * level
        above = below = 0.0
        for y in range(HEIGHT):
            for x in range(WIDTH):
                m = made.tensors["mask"][row, 0, y, x].item() if "mask" in made.tensors else 1.0
                counts = config.mask_floor + (1 - config.mask_floor) * m
                for c in range(CHANNELS):
                    off = abs((said - target)[c, y, x].item())
                    near = 0.5 * off**2 if off < 1 else off - 0.5
                    above += counts * {"mse": off**2, "l1": off, "huber": near}[config.loss]
                below += counts
        snr = (alpha**2 / sigma**2).item()
        weight = made.weights[row].item()
        if config.min_snr_gamma is not None:
            weight *= min(snr, config.min_snr_gamma) / (snr + (family.prediction_type != "epsilon"))
        total += weight * above / (CHANNELS * below)
    return total


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"mask_floor": 0.3}, {"min_snr_gamma": 5.0, "mask_floor": 0.1}, {"prior": "base", "min_snr_gamma": 5.0}],
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_its_formula(prediction_type: str, loss: str, settings: dict, masked: bool):
    config = Config(loss=loss, **settings)
    family = Drawer(prediction_type, trained=0.2)
    made = batch(a_mask() if masked else None, (False, True, True, False))
    total = build(config).loss(family, made).total
    assert total.item() == pytest.approx(written_out(family, config, made), rel=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.3, 0.7, 1.0])
def test_a_white_mask_is_no_mask(floor: float):
    objective, family = build(Config(mask_floor=floor)), Drawer()
    white = torch.ones(ROWS, 1, HEIGHT, WIDTH)
    assert torch.equal(objective.loss(family, batch(white)).total, objective.loss(family, batch()).total)


def test_a_floor_of_one_is_no_mask():
    family = Drawer()
    whole = build(Config()).loss(family, batch()).total
    assert torch.allclose(build(Config(mask_floor=1.0)).loss(family, batch(a_mask())).total, whole, rtol=1e-12)


def test_the_share_that_counts_changes_nothing_where_the_loss_is_even():
    """A small subject learns as fast as a large one: constant error gives the same loss under any mask."""
    objective = build(Config())
    ones = torch.ones((ROWS, *SHAPE), dtype=torch.float64)
    found = objective._distance(2 * ones, ones, a_mask())
    assert torch.allclose(found, torch.ones(ROWS, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize(("floor", "still"), [(0.0, True), (0.1, False)])
def test_nothing_outside_the_mask_is_learned(floor: float, still: bool):
    mask = (a_mask() > 0.5).float()
    said = torch.randn((ROWS, *SHAPE), dtype=torch.float64, requires_grad=True)
    build(Config(mask_floor=floor))._distance(said, torch.zeros_like(said), mask).sum().backward()
    outside = said.grad * (mask == 0)
    assert bool((outside == 0).all()) is still and bool((said.grad * mask != 0).any())
    assert 0 < mask.mean() < 1


def test_rows_without_a_mask_beside_rows_with_one():
    """Each row's loss is what it would be alone: rows of ones are rows without a mask."""
    objective, family = build(Config(mask_floor=0.2)), Drawer()
    mask = a_mask()
    together = objective._distance(*_said(family), mask)
    whole = objective._distance(*_said(family), None)
    assert torch.equal(together[1], whole[1]) and not torch.equal(together[0], whole[0])


def _said(family: Drawer) -> tuple[torch.Tensor, torch.Tensor]:
    clean = batch().tensors["clean"]
    return family.base * clean, clean


def test_the_prior_is_what_the_base_says():
    made = batch(None, (True,) * ROWS)
    objective = build(Config(prior="base"))
    # Nothing is trained yet: the loss is 0, and so is its gradient.
    fresh = Drawer()
    total = objective.loss(fresh, made).total
    total.backward()
    assert total.item() == 0 and bool((fresh.pairs.grad == 0).all()) and fresh.with_pairs
    trained = Drawer(trained=0.2)
    total = objective.loss(trained, batch(None, (True,) * ROWS)).total
    total.backward()
    assert total.item() > 0 and bool((trained.pairs.grad > 0).all())


def test_the_base_is_asked_where_it_is_needed_only():
    for prior, rows, asked in (("base", (), 1), ("base", (False,) * 4, 1), ("base", (False, True, False, False), 2)):
        family = Drawer(trained=0.2)
        build(Config(prior=prior)).loss(family, batch(None, rows))
        assert family.asked == asked
    plain, kept = Drawer(trained=0.2), Drawer(trained=0.2)
    expected = build(Config()).loss(plain, batch()).total
    assert torch.equal(build(Config(prior="pictures")).loss(kept, batch(None, (True,) * 4)).total, expected)


def test_the_prior_draws_the_same_noise():
    """Rows that are learned do not notice that others are kept."""
    family = Drawer(trained=0.2)
    made = batch(None, (False, True, False, True))
    object.__setattr__(made, "weights", torch.tensor([1.0, 0.0, 1.0, 0.0]))
    alone = batch()
    object.__setattr__(alone, "weights", torch.tensor([1.0, 0.0, 1.0, 0.0]))
    objective = build(Config(prior="base"))
    assert torch.equal(objective.loss(family, made).total, objective.loss(family, alone).total)
