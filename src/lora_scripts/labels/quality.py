"""How well captions fit their pictures, by a model that puts both into one space.

Two numbers, both of points of norm 1. CLIPScore of one caption: w * max(cos, 0) with w = 2.5 (Hessel et al., EMNLP
2021, arXiv 2104.08718, eq. 1). In-set retrieval: of all pictures of the set, does a caption find its own? That is what
training needs of captions: that they tell pictures apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.labels.outcome import Tell
from lora_scripts.labels.reading import stream

if TYPE_CHECKING:
    import numpy

    from lora_scripts.contracts import Embedder

CLIP_SCORE_WEIGHT = 2.5
MOST_AT_ONCE = 1 << 24
"""Similarities that are held at a time: 64 MiB."""
SAME = 1e-5
"""Similarities that differ by less are equal: float32's rounding moves equal points so far apart."""
FEWEST = 2


@dataclass(frozen=True)
class Retrieval:
    """How captions find their pictures.

    Attributes:
        recall: share of captions whose own picture is the nearest, ties shared.
        mrr: mean of 1 / rank.
        ranks: of each caption's own picture, from 1; in the middle of those that are equally near.
    """

    recall: float
    mrr: float
    ranks: Sequence[float]


def clip_scores(pictures_ND: numpy.ndarray, texts_ND: numpy.ndarray) -> numpy.ndarray:
    """(N,) CLIPScore of each caption and its picture, 0 to 2.5."""
    import numpy as np

    cosines = np.einsum("nd,nd->n", pictures_ND.astype(np.float32), texts_ND.astype(np.float32))
    return CLIP_SCORE_WEIGHT * np.maximum(cosines, 0.0)


def retrieval(pictures_ND: numpy.ndarray, texts_ND: numpy.ndarray, most: int = MOST_AT_ONCE) -> Retrieval:
    """Rank each caption's own picture among all pictures, some captions at a time.

    Where several pictures are equally near, each order of them is as good: what is returned is the mean over all, so
    that captions that tell nothing apart gain nothing. Equal captions find each picture once.
    """
    import numpy as np

    total = len(pictures_ND)
    rows = max(1, most // max(1, total))
    pictures_ND = pictures_ND.astype(np.float32)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, total + 1))])
    recall = mrr = 0.0
    ranks: list[float] = []
    for start in range(0, total, rows):
        near_RN = texts_ND[start : start + rows].astype(np.float32) @ pictures_ND.T
        own_R1 = near_RN[np.arange(len(near_RN)), np.arange(start, start + len(near_RN))][:, None]
        nearer = (near_RN > own_R1 + SAME).sum(1)
        equal = (np.abs(near_RN - own_R1) <= SAME).sum(1)
        recall += float(((nearer == 0) / equal).sum())
        mrr += float(((harmonic[nearer + equal] - harmonic[nearer]) / equal).sum())
        ranks += (nearer + (equal + 1) / 2).tolist()
    return Retrieval(recall / total, mrr / total, ranks)


def review(
    folder: Path, pairs: Sequence[tuple[str, str]], judge: Embedder, talk: tuple[Tell, Callable[[], int]]
) -> dict[str, Any] | None:
    """Return the side file's line: the two numbers, and (name, CLIPScore, rank) of each picture, the worst first.

    None where there are too few pictures to tell apart, or the run shall end.
    """
    import numpy as np

    tell, stop = talk
    batch = getattr(judge, "batch_size", 16)
    captions = dict(pairs)
    names: list[str] = []
    points: list[numpy.ndarray] = []
    waiting = []
    for seen in stream(folder, list(captions), lambda name, sha256: True, batch):
        if stop():
            return None
        if seen.picture is not None:
            names.append(seen.name)
            waiting.append(seen.picture)
        if len(waiting) >= batch:
            # Half precision: a hundred thousand pictures must fit beside the rest.
            points.append(judge.embed_pictures(waiting).astype(np.float16))
            waiting = []
            tell.say("label.reviewing", done=len(names), total=len(captions))
    if waiting:
        points.append(judge.embed_pictures(waiting).astype(np.float16))
    if len(names) < FEWEST:
        return None
    texts = [judge.embed_texts([captions[n] for n in names[i : i + 256]]) for i in range(0, len(names), 256)]
    pictures_ND, texts_ND = _unit(np.concatenate(points)), np.concatenate(texts)
    found, scores = retrieval(pictures_ND, texts_ND), clip_scores(pictures_ND, texts_ND)
    order = sorted(range(len(names)), key=lambda i: (float(scores[i]), names[i]))
    return {
        "kind": "review",
        "judge": getattr(judge, "title", ""),
        "recall_at_1": round(found.recall, 4),
        "mrr": round(found.mrr, 4),
        "captions": len(names),
        "order": [[names[i], round(float(scores[i]), 4), found.ranks[i]] for i in order],
    }


def _unit(points_ND: numpy.ndarray) -> numpy.ndarray:
    import numpy as np

    points_ND = points_ND.astype(np.float32)
    return points_ND / np.linalg.norm(points_ND, axis=1, keepdims=True).clip(1e-12)
