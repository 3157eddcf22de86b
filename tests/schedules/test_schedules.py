"""Every schedule at fixed points, computed by hand; its rise, its ends, its direction."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from lora_scripts import registry

SCHEDULES = registry.names("schedules")
TOTAL, WARMUP = 110, 10

# name, options, {share of the course after the warm-up: factor}
POINTS = [
    ("constant", {}, {0: 1, 0.5: 1, 0.99: 1}),
    ("cosine", {}, {0: 1, 0.25: 0.5 + math.sqrt(2) / 4, 0.5: 0.5, 0.75: 0.5 - math.sqrt(2) / 4}),
    ("cosine", {"floor": 0.2}, {0: 1, 0.5: 0.6}),
    ("cosine_restarts", {}, {0: 1, 0.25: 0.5, 0.5: 1, 0.75: 0.5}),
    ("cosine_restarts", {"cycles": 4, "floor": 0.1}, {0: 1, 0.125: 0.55, 0.25: 1, 0.75: 1, 0.875: 0.55}),
    ("cosine_restarts", {"cycles": 1}, {0: 1, 0.5: 0.5, 0.75: 0.5 - math.sqrt(2) / 4}),
    ("linear", {}, {0: 1, 0.25: 0.75, 0.5: 0.5, 0.9: 0.1}),
    ("linear", {"floor": 0.5}, {0: 1, 0.5: 0.75}),
    ("polynomial", {}, {0: 1, 0.5: 0.25, 0.9: 0.01}),
    ("polynomial", {"power": 0.5, "floor": 0.2}, {0: 1, 0.75: 0.6}),
    ("polynomial", {"power": 1}, {0.25: 0.75}),
    ("rex", {}, {0: 1, 0.5: 2 / 3, 0.75: 0.4, 0.9: 2 / 11}),
    ("rex", {"floor": 0.4}, {0: 1, 0.5: 0.8}),
    ("wsd", {}, {0: 1, 0.5: 1, 0.8: 1, 0.85: 0.5, 0.9: 1 - math.sqrt(0.5)}),
    ("wsd", {"decay": 0.5, "shape": "linear"}, {0.5: 1, 0.75: 0.5, 0.9: 0.2}),
    ("wsd", {"decay": 0.5, "shape": "cosine", "floor": 0.2}, {0.5: 1, 0.75: 0.6}),
    ("wsd", {"decay": 1, "shape": "linear"}, {0: 1, 0.25: 0.75}),
]


def course(name: str, total: int = TOTAL, warmup: int = WARMUP, **options) -> list[float]:
    module = registry.load("schedules", name)
    config = module.Config(**options)
    return [module.factor(step, total, warmup, config) for step in range(total)]


def test_there_are_seven_and_every_one_has_points() -> None:
    assert SCHEDULES == ("constant", "cosine", "cosine_restarts", "linear", "polynomial", "rex", "wsd")
    assert {name for name, _, _ in POINTS} == set(SCHEDULES)
    named = {(name, key) for name, options, _ in POINTS for key in options}
    assert named == {(name, key) for name in SCHEDULES for key in registry.load("schedules", name).Config.model_fields}


@pytest.mark.parametrize(("name", "options", "points"), POINTS)
def test_the_formula_at_fixed_points(name, options, points):
    module = registry.load("schedules", name)
    config = module.Config(**options)
    for share, expected in points.items():
        # A course of a thousand steps behind the warm-up has a step at every such share.
        found = module.factor(WARMUP + round(1000 * share), WARMUP + 1000, WARMUP, config)
        assert found == pytest.approx(expected, abs=1e-12), share


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rise_is_even_and_the_peak_comes_right_after_it(name):
    factors = course(name)
    assert factors[: WARMUP + 1] == pytest.approx([(step + 1) / (WARMUP + 1) for step in range(WARMUP + 1)])
    assert factors[WARMUP] == 1.0
    assert course(name, warmup=0)[0] == 1.0
    assert len(set(course(name, total=5, warmup=5))) == 5


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_never_leaves_its_range_and_goes_down(name):
    for options in ({}, {"floor": 0.3}) if name != "constant" else ({},):
        factors = course(name, **options)
        assert all(options.get("floor", 0) < factor <= 1 for factor in factors[WARMUP:])
        rises = sum(b > a + 1e-12 for a, b in pairwise(factors[WARMUP:]))
        assert rises == (1 if name == "cosine_restarts" else 0)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
def test_the_last_step_is_near_the_floor(name):
    assert course(name, total=10_000, warmup=0)[-1] < 0.03
    assert course(name, total=10_000, warmup=0, floor=0.25)[-1] == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 3)])
def test_the_shortest_runs_have_a_rate(name, total, warmup):
    assert all(0 < factor <= 1 for factor in course(name, total=total, warmup=warmup))
