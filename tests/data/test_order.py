"""The order of visits: complete, seeded, and independent of how a step is split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from lora_scripts.data.order import hold_out, micro_batches, seed_of, steps_of_epoch, visits


@dataclass(frozen=True)
class Thing:
    id: str
    group: int
    repeats: int = 1
    weight: float = 1.0
    fingerprint: str = ""
    length: int = 1

    @property
    def split_key(self) -> str:
        return self.fingerprint


groups = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=30)


@given(groups, st.integers(1, 9), st.integers(0, 5))
def test_each_visit_happens_once_an_epoch(rows, step_size, epoch):
    things = [Thing(str(i), group, repeats) for i, (group, repeats) in enumerate(rows)]
    steps = steps_of_epoch(things, epoch, 7, step_size)
    assert Counter(visit for step in steps for visit in step) == Counter(visits(things, epoch))
    assert len(steps) == -(-len(visits(things, epoch)) // step_size)


@given(groups, st.integers(1, 4))
def test_micro_batches_hold_one_group_and_ranks_share_the_step(rows, batch_size):
    things = [Thing(str(i), group, repeats) for i, (group, repeats) in enumerate(rows)]
    for step in steps_of_epoch(things, 0, 7, 8):
        whole = micro_batches(step, things, batch_size)
        assert all(len({things[v.example].group for v in batch}) == 1 and len(batch) <= batch_size for batch in whole)
        shared = [micro_batches(step, things, batch_size, rank=rank, world=2) for rank in range(2)]
        assert Counter(v for part in shared for batch in part for v in batch) == Counter(step)


def test_order_changes_with_epoch_and_seed_but_not_with_split():
    things = [Thing(str(i), i % 2) for i in range(20)]
    first = steps_of_epoch(things, 0, 7, 4)
    assert first == steps_of_epoch(things, 0, 7, 4)
    assert first != steps_of_epoch(things, 1, 7, 4)
    assert first != steps_of_epoch(things, 0, 8, 4)
    for split in (1, 2, 4):
        assert [Counter(v for b in micro_batches(s, things, split) for v in b) for s in first] == [
            Counter(s) for s in first
        ]


def test_seeds_depend_on_every_part_and_on_order():
    assert len({seed_of(1, 2), seed_of(2, 1), seed_of(12), seed_of("1", "", "2"), seed_of(1, 2, "x")}) == 5
    assert 0 <= seed_of(1) < 2**63


def test_held_out_part_is_stable_when_data_is_added():
    things = [Thing(str(i), 0, fingerprint=str(i)) for i in range(200)]
    train, held = hold_out(things, 0.2, 1)
    assert 20 < len(held) < 60 and len(train) + len(held) == 200
    more = hold_out([*things, *(Thing(f"n{i}", 0, fingerprint=f"n{i}") for i in range(50))], 0.2, 1)[1]
    assert set(held) <= set(more)
