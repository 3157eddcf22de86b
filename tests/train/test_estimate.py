"""Arithmetic of estimates, and the rungs of the ladder."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lora_scripts.config.schema import RunConfig
from lora_scripts.contracts import Pace
from lora_scripts.train import ladder
from lora_scripts.train.estimate import (
    Counted,
    Habits,
    Work,
    estimate_memory,
    estimate_seconds,
    frugal,
    habits,
    kept_by_rule,
)
from lora_scripts.train.ladder import Facts, Rung, Trial
from lora_scripts.train.plan import Plan

COUNTED = Counted(
    runtime=1_000_000,
    base=200_000,
    reading=30_000,
    encoders=40_000,
    pairs=5_000,
    states=10_000,
    average=5_500,
    encoding=60_000,
    step=70_000,
    preview=8_000,
    collected=True,
)
HABITS = Habits(objects=300, kernels=70, kept=2.0)
PLAN = Plan(accumulation=2, step_size=8, visits=16, steps_per_epoch=2, steps=20, warmup=1, saves=(20,), epochs=10)


def config(**values: Any) -> RunConfig:
    return RunConfig(base_model="base", output_dir=Path("out"), **values)


def test_each_phase_is_the_sum_of_what_is_there_then():
    started = 1_000_000 + 200_000 + 300 + 5_000
    trained = started + 10_000 + 5_500
    assert dict(estimate_memory(COUNTED, HABITS).phases) == {
        "load": 1_240_000,
        "encode": started + 40_000 + 120_000,
        "step": trained + 70 + 5_000 + 140_000,
        "update": trained + 70 + 15_000,
        "preview": trained + 70 + 16_000,
    }
    alone = estimate_memory(replace(COUNTED, collected=False, reading=500_000), HABITS)
    assert alone.phases["step"] == trained + 70 + 140_000
    assert (alone.peak, alone.phase) == (1_700_000, "load")


def test_habits_follow_the_device_and_what_the_run_asks_for():
    assert habits("cpu", 2, is_frugal=True).kept < habits("cpu", 2, is_frugal=False).kept
    assert habits("cpu", 4, is_frugal=False).kernels < habits("cpu", 2, is_frugal=False).kernels
    assert habits("cuda", 2, is_frugal=False).kept < habits("cpu", 2, is_frugal=True).kept
    assert not frugal(config())
    assert frugal(config(gradient_checkpointing=True))
    assert frugal(config(base_precision="fp8"))
    assert frugal(config(base_precision="nf4"))


def test_what_cannot_be_counted_follows_the_operations():
    pace = Pace(share=0.5, seconds=0.1, bytes_per_operation=0.004)
    assert kept_by_rule(pace, 1e9, 4, is_checkpointed=False) == 4_000_000
    assert kept_by_rule(pace, 1e9, 0.55, is_checkpointed=False) == 2_000_000
    assert kept_by_rule(pace, 1e9, 4, is_checkpointed=True) == 1_200_000


def test_seconds_are_arithmetic_and_a_share_a_micro_batch():
    pace = Pace(share=0.5, seconds=0.25, bytes_per_operation=0.0)
    work = Work(operations={"a": 1e9, "b": 3e9}, counts={"a": 3, "b": 1}, pace=pace)
    # 1.5e9 operations a visit, three passes, 8 visits a step, half of 1e10 a second.
    assert estimate_seconds(PLAN, work, 1e10) == pytest.approx(20 * (3 * 1.5e9 * 8 / 5e9 + 0.5))
    slow = replace(work, slower=2.0)
    assert estimate_seconds(PLAN, slow, 1e10) == pytest.approx(20 * (2 * 3 * 1.5e9 * 8 / 5e9 + 0.5))


FACTS = Facts(base="float32", quantises=("fp8", "nf4"), offloads=6)


@pytest.mark.parametrize(
    ("values", "facts", "expected"),
    [
        ({"batch_size": 4}, FACTS, ["bf16", "one_at_a_time", "checkpointing", "fp8", "nf4", "offload"]),
        ({"batch_size": 4}, replace(FACTS, base="bf16"), ["one_at_a_time", "checkpointing", "fp8", "nf4", "offload"]),
        ({"gradient_checkpointing": True}, replace(FACTS, base="fp8"), ["nf4", "offload"]),
        ({"offload_blocks": 6}, replace(FACTS, base="nf4"), ["checkpointing"]),
        ({}, Facts("bf16", (), 0), ["checkpointing"]),
        ({"gradient_checkpointing": True}, Facts("bf16", (), 0), []),
    ],
)
def test_only_rungs_that_are_not_taken_yet(values: dict[str, Any], facts: Facts, expected: list[str]):
    found = ladder.rungs(config(**values), PLAN, facts)
    assert [rung.name for rung in found] == ["as_it_is", *expected]
    assert dict(found[0].changes) == {}


def test_each_rung_has_the_changes_of_those_above_it():
    found = ladder.rungs(config(batch_size=4), PLAN, FACTS)
    for above, below in pairwise(found):
        assert above.changes.keys() <= below.changes.keys()
    assert dict(found[-1].changes) == {
        "base_precision": "nf4",
        "batch_size": 1,
        # Four at once, twice: a step is as large as before.
        "gradient_accumulation": 8,
        "gradient_checkpointing": True,
        "offload_blocks": 6,
    }


def test_climbing_stops_at_the_first_that_fits():
    wanted = [Rung(name) for name in "abc"]
    sizes = {"a": 30, "b": 20, "c": 10}
    asked: list[str] = []

    def count(rung: Rung) -> Trial:
        asked.append(rung.name)
        return Trial(rung, sizes[rung.name], 1.0)

    tried, fits = ladder.climb(wanted, 20, count)
    assert fits is not None
    assert fits.rung.name == "b"
    assert asked == ["a", "b"] == [trial.rung.name for trial in tried]
    assert ladder.climb(wanted, 9, count)[1] is None


def test_what_costs_time_says_so():
    plain = ladder.slowdown(config(), "cpu")
    assert plain == 1.0
    again = ladder.slowdown(config(gradient_checkpointing=True), "cuda")
    assert 1.2 < again < 1.6
    assert ladder.slowdown(config(gradient_checkpointing=True), "cpu") > again
    assert ladder.slowdown(config(base_precision="fp8"), "cuda") > 1.0
