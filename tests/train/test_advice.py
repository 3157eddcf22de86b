"""Advice is said once, with the numbers, and only where they show it."""

from __future__ import annotations

import pytest

from lora_scripts import messages
from lora_scripts.events import Advised, Evaluated, Stepped
from lora_scripts.train.listeners.advice import Advice


def stepped(step: int, loss: float) -> Stepped:
    return Stepped(step, 1, loss, {}, 1.0, 1.0, 0.1, 1)


def said(losses=(), held=()) -> list[Advised]:
    told: list[Advised] = []
    advice = Advice(told.append)
    for step, loss in enumerate(losses, 1):
        advice(stepped(step, loss))
    for step, loss in enumerate(held, 1):
        advice(Evaluated(step, loss))
    return told


FALLING = [1 / (1 + i / 50) for i in range(400)]


@pytest.mark.parametrize(
    ("losses", "held", "codes"),
    [
        (FALLING, (), []),
        ([*FALLING[:100], *[5.0] * 30], (), ["train.advice_jump"]),
        ([0.5] * 400, (), ["train.advice_flat"]),
        (FALLING, [0.5, 0.4, 0.41, 0.42, 0.43, 0.44], ["train.advice_rising"]),
        (FALLING, [0.5, 0.4, 0.41, 0.42, 0.39, 0.4], []),
    ],
)
def test_advice(losses, held, codes):
    told = said(losses, held)
    assert [event.code for event in told] == codes
    for event in told:
        sentence = messages.text(event.code, **event.params)
        assert any(character.isdigit() for character in sentence)


def test_a_resumed_run_says_nothing_twice():
    told: list[Advised] = []
    first = Advice(told.append)
    for step in range(1, 301):
        first(stepped(step, 0.5))
    second = Advice(told.append)
    second.load_state_dict(first.state_dict())
    for step in range(301, 700):
        second(stepped(step, 0.5))
    assert len(told) == 1
