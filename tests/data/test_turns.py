"""Sets that are dealt in turn: exact numbers an epoch, everything in its turn, and never held out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_scripts.data.order import hold_out, steps_of_epoch, visits, visits_by_purpose


@dataclass(frozen=True)
class Thing:
    id: str
    repeats: int = 1
    group: int = 0
    regularisation: bool = False
    deal: tuple[str, int | None] | None = None

    @property
    def split_key(self) -> str:
        return self.id


def ring(count: int, wanted: int | None, repeats: int = 1, name: str = "r", kept: bool = True) -> list[Thing]:
    return [Thing(f"{name}{i}", repeats, regularisation=kept, deal=(name, wanted)) for i in range(count)]


def counts(things: list[Thing], epoch: int) -> list[int]:
    seen = Counter(visit.example for visit in visits(things, epoch))
    return [seen[i] for i in range(len(things))]


def test_in_turn():
    things = [Thing("a", 2), *ring(3, 2)]
    assert [counts(things, epoch) for epoch in range(4)] == [[2, 1, 1, 0], [2, 1, 0, 1], [2, 0, 1, 1], [2, 1, 1, 0]]
    many = ring(3, 7)
    assert [counts(many, epoch) for epoch in range(3)] == [[3, 2, 2], [2, 3, 2], [2, 2, 3]]
    assert [visit.repeat for visit in visits(many, 0)] == [0, 1, 2, 0, 1, 0, 1]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 40), st.integers(1, 9))
def test_every_epoch_is_full_and_every_place_has_its_turn(repeats, wanted, epochs):
    things = [Thing(str(i), n, deal=("set", wanted)) for i, n in enumerate(repeats)]
    told = [counts(things, epoch) for epoch in range(epochs)]
    assert [sum(row) for row in told] == [wanted] * epochs
    whole = epochs * wanted // sum(repeats)
    for seen, places in zip(map(sum, zip(*told, strict=True)), repeats, strict=True):
        assert whole * places <= seen <= (whole + 1) * places
    steps = steps_of_epoch(things, 0, 7, 3)
    assert sum(map(len, steps)) == wanted and len({visit for step in steps for visit in step}) == wanted


def test_as_many_as_are_learned():
    things = [
        Thing("a", 5),
        *ring(2, None),
        *ring(4, 3, name="turns", kept=False),
        Thing("kept", 9, regularisation=True),
    ]
    assert visits_by_purpose(things) == (8, 17)
    assert sum(counts(things, 1)[1:3]) == 8
    # Without what was held out there is less to learn, and as much less for regularisation.
    assert visits_by_purpose(things[1:]) == (3, 12)


def test_several_sets_have_their_own_rings():
    things = [*ring(2, 3, name="x"), *ring(2, 5, name="y")]
    assert sorted(counts(things, 0)[:2]) == [1, 2] and sum(counts(things, 0)[2:]) == 5


def test_a_measurement_sees_everything_once():
    assert counts(ring(4, 1, kept=False), -1) == [1, 1, 1, 1]


def test_without_sets_nothing_is_dealt():
    assert counts([Thing("a", 2), Thing("b", 3)], 4) == [2, 3]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_regularisation_is_never_held_out(share: float):
    things = [*(Thing(str(i)) for i in range(200)), *ring(200, None)]
    train, held = hold_out(things, share, 1)
    assert not any(thing.regularisation for thing in held) and len(held) == pytest.approx(200 * share, abs=25)
    assert sum(thing.regularisation for thing in train) == 200 and visits_by_purpose(train) == (200 - len(held),) * 2
