"""A small classifier of texts, trained in seconds, that says of each text what it would be taken for by the others.

Logistic regression over hashed words, pairs of words, and pieces of words (Chinese: characters and pairs), weighed by
how rare they are and cut to length one; fitted by Adam (Kingma & Ba 2015, alg. 1) over the whole set at once. Every
text is judged by a model that has not seen it.

Memory grows with the texts: some 3 kB of features each, and for the at most `MOST` that are learned from at a time as
much again for every class.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FOLDS, FOLDS_OF_MANY, MANY = 5, 3, 5_000
MOST = 8_000
"""Texts that a model is fitted to; of more, a sample."""
STEPS, RATE, DECAY = 20, 0.7, 1e-3
"""Passes over the texts, the rate of Adam, and the weight of the squares of the parameters."""
BETA_MEAN, BETA_SQUARE = 0.9, 0.99
FEATURES = 1 << 18
LETTERS = 1_000
"""Letters of a text that are read: what it is about is said by then."""
_PIECE = 4
_TOKEN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


@dataclass(frozen=True)
class Sparse:
    """Texts as rows of a sparse matrix: the columns and values of one row stand in a row, from `starts[i]` on."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, places: np.ndarray) -> Sparse:
        """Return some of the rows."""
        sizes = np.diff(self.starts)[places]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        inside = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes) + np.repeat(self.starts[places], sizes)
        return Sparse(starts, self.columns[inside], self.values[inside])


def features(texts: Sequence[str]) -> Sparse:
    """Return the hashed features of texts; those that only one text has are left out."""
    hashed = [np.unique(np.fromiter(map(_hash, _features(text)), np.int64)) for text in texts]
    counts = np.zeros(FEATURES, np.int64)
    for each in hashed:
        counts[each] += 1
    weights = np.log((1 + len(texts)) / (1 + counts)).astype(np.float32)
    kept = [each[counts[each] > 1] for each in hashed]
    starts = np.concatenate([[0], np.cumsum([len(each) for each in kept])])
    columns = np.concatenate(kept) if kept else np.empty(0, np.int64)
    values = weights[columns]
    norms = np.sqrt(_sums(values[:, None] ** 2, starts)[:, 0])
    values /= np.repeat(np.maximum(norms, 1e-9), np.diff(starts))
    _, columns = np.unique(columns, return_inverse=True)
    return Sparse(starts, columns.reshape(-1).astype(np.int32), values)


def _hash(feature: str) -> int:
    return zlib.crc32(feature.encode("utf-8", "surrogatepass")) % FEATURES


def _features(text: str) -> Iterator[str]:
    words = _TOKEN.findall(text[:LETTERS].casefold())
    yield from words
    yield from map(" ".join, pairwise(words))
    for word in words:
        if len(word) >= _PIECE:
            whole = f"<{word}>"
            yield from (whole[i : i + _PIECE] for i in range(len(whole) - _PIECE + 1))


def judge(texts: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Return the probability of each label for each text, by a model that has not seen it.

    Args:
        labels: of each text, from 0; shape (texts,).

    Returns:
        Shape (texts, labels); calibrated by one temperature for all.
    """
    rows, folds = features(texts), split(labels)
    scores = np.zeros((len(texts), int(labels.max()) + 1), np.float32)
    draw = np.random.default_rng(0)
    for fold in range(int(folds.max()) + 1):
        learned, judged = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(learned) > MOST:
            learned = np.sort(draw.choice(learned, MOST, replace=False))
        weights, bias = fit(rows.take(learned), labels[learned], scores.shape[1], int(rows.columns.max(initial=0)) + 1)
        part = rows.take(judged)
        scores[judged] = _sums(weights[part.columns] * part.values[:, None], part.starts) + bias
    return _calibrated(scores, labels)


def split(labels: np.ndarray) -> np.ndarray:
    """Return a fold for each text, so that each fold has its share of each label; the same every time."""
    count = FOLDS if len(labels) <= MANY else FOLDS_OF_MANY
    folds, draw, given = np.zeros(len(labels), np.int64), np.random.default_rng(0), 0
    for label in np.unique(labels):
        places = draw.permutation(np.flatnonzero(labels == label))
        # Each label goes on where the one before it stopped, so that small ones do not all fill the first folds.
        folds[places] = (np.arange(len(places)) + given) % count
        given += len(places)
    return folds


def fit(rows: Sparse, labels: np.ndarray, classes: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights, shape (columns, classes), and the bias of a logistic regression."""
    order = np.argsort(rows.columns, kind="stable")
    texts = np.repeat(np.arange(len(rows)), np.diff(rows.starts))[order]
    by_column = rows.values[order][:, None]
    used, sizes = np.unique(rows.columns, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    own = np.searchsorted(used, rows.columns)
    weights, mean, square = (np.zeros((len(used), classes), np.float32) for _ in range(3))
    wanted = np.eye(classes, dtype=np.float32)[labels]
    bias = np.log(wanted.mean(axis=0) + 1 / len(rows))
    for step in range(1, STEPS + 1):
        given = softmax(_sums(weights[own] * rows.values[:, None], rows.starts) + bias)
        wrong = (given - wanted) / len(rows)
        slope = _sums(wrong[texts] * by_column, ends) + DECAY * weights / classes
        mean += (1 - BETA_MEAN) * (slope - mean)
        square += (1 - BETA_SQUARE) * (slope**2 - square)
        # The rate falls to nothing, since what the last steps do is not averaged out.
        rate = RATE * (1 - (step - 1) / STEPS) / (1 - BETA_MEAN**step)
        weights -= rate * mean / (np.sqrt(square / (1 - BETA_SQUARE**step)) + 1e-8)
    full = np.zeros((columns, classes), np.float32)
    full[used] = weights
    return full, bias.astype(np.float32)


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the sum of each row's values, 0 for a row that has none; shape (rows, values of one)."""
    sums = np.zeros((len(starts) - 1, values.shape[1]), values.dtype)
    filled = np.diff(starts) > 0
    if filled.any():
        sums[filled] = np.add.reduceat(values, starts[:-1][filled], axis=0)
    return sums


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return probabilities; shape and type as the scores."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _calibrated(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return probabilities at the temperature that makes the given labels likeliest."""
    every = np.arange(len(labels))
    tried = [softmax(scores / temperature) for temperature in np.geomspace(0.1, 4, 20).astype(np.float32)]
    return max(tried, key=lambda shares: float(np.log(shares[every, labels] + 1e-6).mean()))
