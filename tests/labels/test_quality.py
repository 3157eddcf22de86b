"""CLIPScore and in-set retrieval against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lora_scripts.labels.quality import clip_scores, retrieval


def points(rows) -> np.ndarray:
    array = np.asarray(rows, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_clip_score_is_two_and_a_half_times_the_cosine_and_never_below_nothing():
    pictures = points([[1, 0], [1, 1], [1, 0]])
    texts = points([[1, 0], [1, 0], [-1, 0]])
    assert clip_scores(pictures, texts) == pytest.approx([2.5, 2.5 / np.sqrt(2), 0.0], abs=1e-6)


def test_captions_that_find_their_pictures():
    found = retrieval(np.eye(5, dtype=np.float32), np.eye(5, dtype=np.float32))
    assert (found.recall, found.mrr, list(found.ranks)) == (1.0, 1.0, [1.0] * 5)


def test_swapped_captions_are_second():
    found = retrieval(points([[1, 0.5], [0.5, 1]]), points([[0.5, 1], [1, 0.5]]))
    assert (found.recall, found.mrr, list(found.ranks)) == (0.0, 0.5, [2.0, 2.0])


def test_equal_pictures_share_the_rank():
    pictures = points([[1, 0], [1, 0], [0, 1]])
    found = retrieval(pictures, pictures)
    # Two are as near as each other: either order is as good, so each counts for half, and 1/2 (1 + 1/2) in the mean.
    assert found.recall == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found.mrr == pytest.approx((0.75 + 0.75 + 1) / 3)
    assert list(found.ranks) == [1.5, 1.5, 1.0]


def test_one_caption_for_all_finds_one_of_them():
    pictures = points(np.random.default_rng(0).normal(size=(20, 6)))
    found = retrieval(pictures, np.repeat(pictures[:1], 20, axis=0))
    assert found.recall == pytest.approx(1 / 20)
    assert sorted(found.ranks) == list(range(1, 21))


def test_a_few_captions_at_a_time_give_the_same():
    random = np.random.default_rng(1)
    pictures, texts = points(random.normal(size=(50, 8))), points(random.normal(size=(50, 8)))
    whole, parts = retrieval(pictures, texts), retrieval(pictures, texts, most=150)
    assert list(whole.ranks) == list(parts.ranks) and whole.mrr == pytest.approx(parts.mrr)
    own = np.sum(texts * pictures, axis=1, keepdims=True)
    assert list(whole.ranks) == list(1.0 + (texts @ pictures.T > own + 1e-5).sum(1))
