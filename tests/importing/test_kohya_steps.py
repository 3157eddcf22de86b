"""Kohya's arithmetic, against cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from lora_scripts.importing.kohya_steps import (
    BucketRule,
    batches,
    bucket,
    given_sizes,
    regularisation_visits,
    steps_per_epoch,
)

PLAIN = BucketRule((512, 512), enabled=True)
SHRINKING = BucketRule((512, 512), enabled=True, no_upscale=True)


def test_the_sizes_for_512_are_those_that_its_logs_print() -> None:
    tall = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    assert given_sizes(PLAIN) == [*tall, (512, 512), *sorted((w, h) for h, w in tall)]


def test_bounds_that_are_no_multiples_are_widened() -> None:
    sizes = given_sizes(BucketRule((512, 512), enabled=True, least=300, most=700))
    assert min(min(size) for size in sizes) == 256
    assert max(max(size) for size in sizes) == 704


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        # 16:9 is 1.778; 640/384 = 1.667 is nearer than 704/320 = 2.2.
        (PLAIN, (1920, 1080), (640, 384)),
        # 4:3 is 1.333; 576/448 = 1.286 is nearer than 512/512 = 1.
        (PLAIN, (800, 600), (576, 448)),
        (PLAIN, (600, 800), (448, 576)),
        # Small pictures are enlarged.
        (PLAIN, (64, 64), (512, 512)),
        # One of the sizes itself wins over an equal shape: 512x512 and any other square are the same shape.
        (PLAIN, (256, 1024), (256, 1024)),
        # Below the area: cut down to multiples of 64.
        (SHRINKING, (400, 300), (384, 256)),
        (SHRINKING, (512, 512), (512, 512)),
        # Above it: 682.7 x 384 keeps the area; 640x384 is nearer to 1.778 than 640x320.
        (SHRINKING, (1920, 1080), (640, 384)),
        # Below one step: its own bucket, whatever becomes of it there.
        (SHRINKING, (63, 640), (0, 640)),
        # Without buckets there is one size.
        (BucketRule((512, 768)), (1920, 1080), (512, 768)),
    ],
)
def test_bucket(rule: BucketRule, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert bucket(size, rule, given_sizes(rule)) == expected


def test_each_bucket_ends_with_a_batch_of_its_own() -> None:
    # 30 visits of squares and 7 of wide pictures, by 4: 8 + 2 batches, where one bucket would have had 10 (37 / 4).
    pictures = [((512, 512), 10)] * 3 + [((1920, 1080), 7)]
    assert batches(pictures, PLAIN, 4) == 8 + 2
    assert batches(pictures, BucketRule((512, 512)), 4) == math.ceil(37 / 4) == 10
    # 29 and 7: 8 + 2 against 9.
    pictures = [((512, 512), 29), ((1920, 1080), 7)]
    assert batches(pictures, PLAIN, 4) == 10
    assert batches(pictures, BucketRule((512, 512)), 4) == 9


@pytest.mark.parametrize(
    ("training", "repeats", "expected"),
    [
        # Enough with their own repeats: the third is not used at all.
        (20, [10, 10, 10], [10, 10, 0]),
        # The last one needed is taken whole, so there may be a few more.
        (15, [10, 10], [10, 10]),
        # Too few: one more each, in turn.
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [2, 1], [4, 3]),
        (5, [], []),
        (0, [1], [0]),
    ],
)
def test_regularisation_is_seen_as_often_as_what_is_learned(
    training: int, repeats: list[int], expected: list[int]
) -> None:
    assert regularisation_visits(training, repeats) == expected


@pytest.mark.parametrize(
    ("count", "accumulation", "processes", "steps"), [(17, 1, 1, 17), (17, 2, 1, 9), (17, 2, 2, 5), (16, 4, 1, 4)]
)
def test_steps_of_an_epoch(count: int, accumulation: int, processes: int, steps: int) -> None:
    assert steps_per_epoch(count, accumulation, processes) == steps
