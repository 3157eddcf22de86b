"""Variety of a set: counts, and never a file's name."""

from __future__ import annotations

import numpy
import pytest

from lora_scripts.doctor import coverage
from lora_scripts.doctor.finding import Finding, Severity
from tests.doctor.caption_survey import survey_of

THINGS = "sofa table chair ladder roof tree meadow river bridge harbour mill barn garden cellar".split()


def found(captions, **settings) -> dict[str, Finding]:
    findings = coverage.find(survey_of(captions, **settings))
    assert not any(finding.items for finding in findings)
    assert all(finding.sentence(part) for finding in findings for part in ("what", "why", "fix"))
    return {finding.name: finding for finding in findings}


def captions(pattern: str, count: int = 14) -> dict[str, str]:
    return {f"{i}.png": pattern.format(THINGS[i], i % 3) for i in range(count)}


def test_a_varied_set_has_nothing_to_say() -> None:
    assert found(captions("a cat on the {}")) == {}
    mixed = {
        f"{i}.png": f"a cat, {('close-up', 'full body', 'wide shot')[i % 3]}, on the {THINGS[i]}" for i in range(14)
    }
    assert found(mixed, kind="person") == {}


def test_few_pictures() -> None:
    finding = found(captions("a cat on the {}", 9))["few_pictures"]
    assert (finding.count, finding.severity) == (9, Severity.SHOULD)
    assert found({}) == {}


@pytest.mark.parametrize(
    ("pattern", "name", "example"),
    [
        ("a woman, upper body, near a {}", "one_framing", "upper body"),
        ("1girl, upper_body, {}", "one_framing", "upper body"),
        ("一个女孩，特写，{}", "one_framing", "特写"),
        ("a cup with a {} before a white background", "one_background", "white background"),
        ("杯子，白色背景，{}", "one_background", "白色背景"),
    ],
)
def test_what_all_captions_say_alike(pattern: str, name: str, example: str) -> None:
    findings = found(captions(pattern))
    assert list(findings) == [name]
    assert findings[name].severity is Severity.GOOD
    assert findings[name].count == 14


def test_a_person_without_full_body() -> None:
    half = {f"{i}.png": f"a woman, {('close-up', 'upper body')[i % 2]}, near a {THINGS[i]}" for i in range(14)}
    assert list(found(half, kind="person")) == ["no_full_body"]
    assert found(half, kind="style") == {}


def test_folders_that_are_shown_unequally() -> None:
    uneven = {f"10_red cat/{i}.png": f"cat {i}" for i in range(8)} | {f"1_dog/{i}.png": f"dog {i}" for i in range(8)}
    finding = found(uneven)["unbalanced"]
    assert (finding.params["most"], finding.params["least"], finding.count) == (80, 8, 2)
    assert "unbalanced" not in found({name.replace("10_", "2_"): text for name, text in uneven.items()})
    assert "unbalanced" not in found({**uneven, "loose.png": "a cat"})


def test_the_largest_ball_counts_neighbours_and_does_not_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = numpy.radians([0, 1, 2, 3, 40, 80, 120, *range(160, 220, 4)])
    points = numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1).astype(numpy.float16)
    least = float(numpy.cos(numpy.radians(5)))
    assert coverage.largest_ball(points, least) == 4
    monkeypatch.setattr(coverage, "ROWS", 5)
    assert coverage.largest_ball(points, least) == 4
    assert coverage.largest_ball(points[:0], least) == 0
