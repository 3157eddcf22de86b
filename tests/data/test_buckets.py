"""The bucket rule, against a search of every bucket."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_scripts.data.buckets import MAX_ASPECT, choose, kept

sides = st.integers(1, 3000)
steps = st.sampled_from([8, 16, 64])
resolutions = st.sampled_from([64, 96, 100, 256, 512])


def allowed(size: tuple[int, int], resolution: int, multiple: int) -> list[tuple[int, int]]:
    """Every bucket that the rule permits."""
    return [
        (width, height)
        for width in range(multiple, min(size[0], 2 * resolution) + 1, multiple)
        for height in range(multiple, min(size[1], 2 * resolution) + 1, multiple)
        if width * height <= resolution**2 and max(width, height) <= MAX_ASPECT * min(width, height)
    ]


@given(st.tuples(sides, sides), resolutions, steps)
def test_a_bucket_fills_the_budget_and_enlarges_nothing(size: tuple[int, int], resolution: int, multiple: int):
    bucket = choose(size, resolution, multiple)
    if bucket is None:
        assert min(size) < multiple
        return
    assert bucket[0] % multiple == bucket[1] % multiple == 0
    assert bucket[0] * bucket[1] <= resolution**2
    assert multiple <= bucket[0] <= size[0] and multiple <= bucket[1] <= size[1]
    assert max(bucket) <= MAX_ASPECT * min(bucket)


@given(st.tuples(sides, sides), st.sampled_from([64, 96, 100, 256]), st.sampled_from([16, 64]))
def test_no_allowed_bucket_is_better(size: tuple[int, int], resolution: int, multiple: int):
    def worth(bucket: tuple[int, int]) -> float:
        return kept(size, bucket) * math.sqrt(bucket[0] * bucket[1])

    candidates = allowed(size, resolution, multiple)
    bucket = choose(size, resolution, multiple)
    assert (bucket is None) == (not candidates)
    if bucket is not None:
        assert bucket in candidates
        assert worth(bucket) == pytest.approx(max(map(worth, candidates)), rel=1e-12)


@given(st.tuples(sides, sides), resolutions, steps)
def test_a_turned_picture_gets_the_turned_bucket(size: tuple[int, int], resolution: int, multiple: int):
    turned = choose((size[1], size[0]), resolution, multiple)
    assert choose(size, resolution, multiple) == (turned and (turned[1], turned[0]))


@given(st.integers(600, 3000), st.floats(0.5, 2.0))
def test_common_photographs_lose_little(width: int, aspect: float):
    size = (width, max(600, round(width * aspect)))
    if max(size) <= 2 * min(size):
        bucket = choose(size, 512, 8)
        assert bucket is not None
        assert kept(size, bucket) > 0.97 and bucket[0] * bucket[1] > 0.95 * 512**2
        coarse = choose(size, 512, 64)
        assert coarse is not None
        assert kept(size, coarse) > 0.85 and coarse[0] * coarse[1] > 0.75 * 512**2


@pytest.mark.parametrize(
    ("size", "resolution", "multiple", "bucket"),
    [
        ((512, 512), 512, 64, (512, 512)),
        ((4000, 4000), 512, 64, (512, 512)),
        ((6000, 4000), 512, 8, (624, 416)),
        ((1920, 1080), 512, 64, (640, 384)),
        # Smaller than the budget: the largest that fits, never more.
        ((300, 200), 512, 64, (256, 192)),
        ((48, 48), 64, 8, (48, 48)),
        ((71, 33), 64, 8, (64, 32)),
        # Three times as long as high would cut nearly half of it away.
        ((200, 127), 512, 64, (128, 64)),
        # The long side is cut where a bucket may not be longer.
        ((5000, 500), 512, 64, (1024, 256)),
        ((5000, 100), 512, 8, (384, 96)),
        ((8, 8), 64, 8, (8, 8)),
        ((7, 500), 64, 8, None),
        ((1, 1), 64, 8, None),
        ((1, 5000), 64, 8, None),
        ((500, 500), 32, 64, None),
    ],
)
def test_known_sizes(size, resolution, multiple, bucket):
    assert choose(size, resolution, multiple) == bucket


def test_the_share_that_is_kept():
    assert kept((100, 100), (64, 64)) == 1
    assert kept((200, 100), (64, 64)) == 0.5
    assert kept((100, 400), (64, 64)) == 0.25
    assert kept((300, 100), (200, 100)) == pytest.approx(2 / 3)
