"""Sums, truncations and likenesses, held against the same computed on whole matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_scripts.adapters import arithmetic
from lora_scripts.adapters.adapter import LoraPair

SHAPES = [(8, 6), (5, 9), (8, 6, 1, 1), (7, 5, 3, 3)]


def a_pair(shape: tuple[int, ...], rank: int, alpha: float = 2.0, seed: int = 0, dtype=torch.float32) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
    return LoraPair(down.to(dtype), up.to(dtype), alpha)


def whole(pair: LoraPair) -> torch.Tensor:
    return (pair.up.double().flatten(1) @ pair.down.double().flatten(1)) * pair.alpha / pair.rank


def near(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> bool:
    return float((first.double() - second.double()).norm()) <= tolerance * float(second.double().norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [(1, 1), (2, 5), (4, 4), (12, 7)])
def test_a_sum_is_the_sum_of_the_matrices(shape, ranks):
    pairs = [a_pair(shape, rank, alpha=1.5 + rank, seed=rank) for rank in ranks]
    weights = (0.6, -0.4)
    total = arithmetic.added([(arithmetic.factors(p), w) for p, w in zip(pairs, weights, strict=True)])
    wanted = sum(w * whole(p) for p, w in zip(pairs, weights, strict=True))
    assert total.rank == sum(ranks) and total.shape == shape
    assert near(total.left @ total.right, wanted, 1e-14)
    made = arithmetic.as_pair(total, alpha=16.0)
    assert made.down.dtype == torch.float32 and tuple(made.down.shape[1:]) == shape[1:]
    assert made.up.shape == (shape[0], sum(ranks), *(1 for _ in shape[2:])) and made.alpha == 16.0
    assert near(made.delta().flatten(1), wanted, 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 4, 20])
def test_singular_values_are_those_of_the_matrix(shape, rank):
    pair = a_pair(shape, rank)
    wanted = torch.linalg.svdvals(whole(pair))
    for found in (arithmetic.spectrum(arithmetic.factors(pair)), arithmetic.split(whole(pair), shape)):
        kept = min(len(wanted), len(found.values))
        assert torch.allclose(found.values[:kept], wanted[:kept], rtol=1e-9, atol=1e-6)
        assert near((found.left * found.values) @ found.right, whole(pair), 1e-10)
        assert found.shape == shape
        assert bool((found.values.diff() <= 0).all())
        real = found.values > 1e-6 * found.values[0]
        for side in (found.left[:, real], found.right[real].T):
            assert near(side.T @ side, torch.eye(side.shape[1]), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_truncation_is_the_best_there_is(shape, rank):
    pair = a_pair(shape, 5)
    values = torch.linalg.svdvals(whole(pair))
    made = arithmetic.pair(arithmetic.spectrum(arithmetic.factors(pair)), rank, alpha=3.0)
    assert made.rank == rank and made.alpha == 3.0
    error = float((whole(made) - whole(pair)).norm())
    best = float(values[rank:].square().sum().sqrt())
    assert error == pytest.approx(best, rel=1e-5, abs=1e-5)


def test_half_precision_is_not_lost_twice():
    pair = a_pair((8, 6), 2, dtype=torch.float16)
    made = arithmetic.pair(arithmetic.spectrum(arithmetic.factors(pair)), 2, alpha=2.0)
    assert near(whole(made), whole(pair), 1e-6)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=12), st.floats(0.01, 1))
@settings(max_examples=60)
def test_rank_for_energy_is_the_smallest(numbers, share):
    values = torch.tensor(sorted(numbers, reverse=True), dtype=torch.float64)
    rank = arithmetic.rank_for_energy(values, share)
    energy, total = values.square(), values.square().sum()
    assert 1 <= rank <= len(values)
    assert float(energy[:rank].sum()) >= share * float(total) * (1 - 1e-9)
    if rank > 1:
        assert float(energy[: rank - 1].sum()) < share * float(total)


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [([4.0, 3.0], 0.64, 1), ([4.0, 3.0], 0.65, 2), ([0.0, 0.0], 0.9, 1), ([2, 1, 0], 1.0, 2), ([5.0], 0.1, 1)],
)
def test_rank_for_energy_in_numbers(values, share, rank):
    assert arithmetic.rank_for_energy(torch.tensor(values, dtype=torch.float64), share) == rank


@pytest.mark.parametrize(("ratio", "rank"), [(1, 1), (2, 2), (3.9, 2), (4, 3), (1e9, 3)])
def test_rank_for_ratio(ratio, rank):
    assert arithmetic.rank_for_ratio(torch.tensor([8.0, 4.0, 2.0, 0.0]), ratio) == rank
    assert arithmetic.rank_for_ratio(torch.zeros(3), ratio) == 1


def test_products_are_those_of_the_matrices():
    first, second = a_pair((7, 5, 3, 3), 3, seed=1), a_pair((7, 5, 3, 3), 2, seed=2)
    a, b = arithmetic.factors(first), arithmetic.factors(second)
    assert arithmetic.product(a, b) == pytest.approx(float((whole(first) * whole(second)).sum()), rel=1e-12)
    assert arithmetic.product(a, a) == pytest.approx(float(whole(first).square().sum()), rel=1e-12)


def test_inside_is_all_of_itself_and_nothing_of_what_is_orthogonal():
    pair = a_pair((8, 6), 2)
    part = arithmetic.factors(pair)
    own = arithmetic.product(part, part)
    assert arithmetic.inside(part, part) == pytest.approx(own, rel=1e-10)
    twice = arithmetic.factors(LoraPair(pair.down, -2 * pair.up, pair.alpha))
    assert arithmetic.inside(part, twice) == pytest.approx(own, rel=1e-10)
    first, second = torch.zeros(1, 6), torch.zeros(1, 6)
    first[0, 0], second[0, 1] = 1.0, 1.0
    apart = [arithmetic.factors(LoraPair(down, torch.ones(8, 1), 1.0)) for down in (first, second)]
    assert arithmetic.inside(*apart) == pytest.approx(0.0, abs=1e-20)


def test_an_update_that_is_no_pair_has_factors_too():
    from lora_scripts import registry

    generator = torch.Generator().manual_seed(4)
    sizes = {"w1_a": (8, 2), "w1_b": (2, 54), "w2_a": (8, 2), "w2_b": (2, 54)}
    tensors = {role: torch.randn(size, generator=generator) for role, size in sizes.items()}
    update = registry.load("adapters", "loha").build(tensors, 2.0)
    found = arithmetic.factors(update, (8, 6, 3, 3))
    assert found.shape == (8, 6, 3, 3)
    wanted = (tensors["w1_a"] @ tensors["w1_b"]) * (tensors["w2_a"] @ tensors["w2_b"])
    assert near(found.left @ found.right, wanted, 1e-6)
