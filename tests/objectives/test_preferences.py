"""DPO and KTO against their papers' formulas on fixed numbers, and what they are at the first step."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from lora_scripts import registry
from lora_scripts.contracts import Batch
from lora_scripts.objectives import kto

CHOSEN, REJECTED = (-12.0, -3.5), (-11.0, -9.0)
REFERENCE = (-13.0, -10.5, -3.0, -9.5)


class Fixed:
    """A family whose tokens' log-probabilities are given."""

    def __init__(self, tokens):
        self.tokens = torch.tensor(tokens, dtype=torch.float64)

    def token_logprobs(self, batch):
        return self.tokens


def batch(count: int, per: int, reference, **more) -> Batch:
    """`count` examples of two sequences, each of `per` tokens."""
    sequences = torch.arange(2 * count).repeat_interleave(per)
    tensors = {"sequences": sequences, "reference": torch.tensor(reference), **more}
    weights = torch.tensor([1.0 + i for i in range(count)])
    return Batch(float(weights.sum()), weights, tensors, [], [str(i) for i in range(count)])


def test_dpo_equals_the_formula():
    sums = torch.tensor([CHOSEN[0], REJECTED[0], CHOSEN[1], REJECTED[1]])
    tokens = (sums[:, None] * torch.tensor([[0.25, 0.75]])).flatten().tolist()
    config = registry.load("objectives", "dpo").Config(beta=0.3)
    found = registry.load("objectives", "dpo").build(config).loss(Fixed(tokens), batch(2, 2, REFERENCE)).total
    wanted = 0.0
    for i, weight in enumerate((1.0, 2.0)):
        margin = (CHOSEN[i] - REFERENCE[2 * i]) - (REJECTED[i] - REFERENCE[2 * i + 1])
        wanted += weight * -math.log(1 / (1 + math.exp(-0.3 * margin)))
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_dpo_with_the_chosen_answers_loss():
    tokens = [-1.0, -2.0, -4.0, -5.0]
    module = registry.load("objectives", "dpo")
    plain = module.build(module.Config()).loss(Fixed(tokens), batch(1, 2, (-3.0, -9.0))).total
    more = module.build(module.Config(sft_weight=0.5)).loss(Fixed(tokens), batch(1, 2, (-3.0, -9.0))).total
    assert float(plain) == pytest.approx(math.log(2))
    assert float(more - plain) == pytest.approx(0.5 * 1.5)


def trl_kto(gains, mismatched, liked, beta):
    """TRL's `KTOTrainer.kto_loss` with loss_type "kto" and weights of 1, written out."""
    kl = torch.tensor(mismatched).mean().clamp(min=0)
    chosen = [1 - torch.sigmoid(beta * (gain - kl)) for gain, up in zip(gains, liked, strict=True) if up]
    rejected = [1 - torch.sigmoid(beta * (kl - gain)) for gain, up in zip(gains, liked, strict=True) if not up]
    return torch.stack(chosen + rejected).sum()


@pytest.mark.parametrize("mismatched", [(0.4, 2.0, 0.3), (-3.0, 0.5, -1.0)], ids=["moved", "clamped at zero"])
def test_kto_equals_the_formula_of_trl(mismatched):
    gains, liked = (1.5, -0.5, 2.5), (True, False, False)
    found = kto.rows_of(torch.tensor(gains), torch.tensor(mismatched), torch.tensor(liked), 0.2).sum()
    assert float(found) == pytest.approx(float(trl_kto(gains, mismatched, liked, 0.2)), rel=1e-6)


def test_kto_takes_sums_references_and_thumbs_from_the_batch():
    tokens = [-1.0, -1.0, -0.5, -1.5]  # answer: -2, another row's answer: -2
    module = registry.load("objectives", "kto")
    made = batch(1, 2, (-3.0, -2.5), liked=torch.tensor([False]))
    found = module.build(module.Config(beta=0.5)).loss(Fixed(tokens), made).total
    # r = 1, z = 0.5
    assert float(found) == pytest.approx(1 - 1 / (1 + math.exp(-0.5 * (0.5 - 1.0))), rel=1e-6)


def test_kto_reference_point_has_no_gradient():
    gains = torch.tensor([0.3, 0.1], requires_grad=True)
    mismatched = torch.tensor([0.7, 0.9], requires_grad=True)
    # What the objective does: the estimate is detached before it gets here.
    kto.rows_of(gains, mismatched.detach(), torch.tensor([True, False]), 0.1).sum().backward()
    assert mismatched.grad is None and bool((gains.grad != 0).all())


def test_every_text_objective_measures_once():
    for name in ("sft", "dpo", "kto"):
        module = registry.load("objectives", name)
        assert module.build(module.Config()).levels(4) == (None,)
        assert module.LEARNS


def test_cross_entropy_is_what_sft_sums():
    logits = torch.randn(4, 9, dtype=torch.float64)
    labels = torch.tensor([1, 2, 3, 4])
    tokens = logits.log_softmax(1)[torch.arange(4), labels].tolist()
    tensors = {
        "sequences": torch.tensor([0, 0, 1, 1]),
        "owners": torch.tensor([0, 1]),
        "weights": torch.tensor([1.0, 1.0, 0.5, 1.0]),
    }
    made = Batch(4.5, torch.tensor([1.0, 2.0]), tensors, [], ["a", "b"])
    found = registry.load("objectives", "sft").build(None).loss(Fixed(tokens), made).total
    each = functional.cross_entropy(logits, labels, reduction="none")
    assert float(found) == pytest.approx(float(each @ torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=torch.float64)))
