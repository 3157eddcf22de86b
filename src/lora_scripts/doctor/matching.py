"""Whether captions fit their pictures, as a CLIP sees it: only where a model was given.

In-set retrieval asks of each caption which of all pictures it fits best. It measures what training needs, captions that
tell pictures apart. CLIPScore, 2.5 max(cos, 0) (Hessel et al., EMNLP 2021, arXiv 2104.08718, eq. 1), orders what a
person should look at: the least fitting first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.data import decode
from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.words import quoted
from lora_scripts.errors import DataError
from lora_scripts.labels.quality import CLIP_SCORE_WEIGHT

if TYPE_CHECKING:
    import numpy

    from lora_scripts.contracts import Embedder
    from lora_scripts.doctor.survey import Survey

FEWEST = 8
"""Pictures among which finding one's own says something."""
ROWS = 512
"""Captions whose similarities to all pictures are held at a time."""
MARGIN = 0.02
"""By how much, as a cosine, another picture must fit better; below that a model cannot tell."""


def find(survey: Survey) -> Sequence[Finding]:
    """Return what a CLIP thinks of captions and pictures; nothing where no model was given.

    Raises:
        BaseModelError, MachineError: the model cannot be loaded.
    """
    if survey.settings.model is None:
        return ()
    named = [picture.name for picture in survey.pictures if picture.problem is None]
    captions = {name: [text for text in survey.captions.get(name, ()) if text.strip()] for name in named}
    if sum(map(bool, captions.values())) < FEWEST:
        return ()
    model, names, pictures_ND = embedded(survey)
    # A model whose texts are none of a language, such as one of tags alone, says so.
    if len(names) < FEWEST or not getattr(model, "judges_captions", True):
        return ()
    rows = [(at, text) for at, name in enumerate(names) for text in captions.get(name, ())]
    return judge(model, names, pictures_ND, rows, model.title)


def embedded(survey: Survey) -> tuple[Any, list[str], numpy.ndarray]:
    """Return the model that was named, the pictures that could be read, and their places (N, D)."""
    files = tuple((picture.name, picture.path) for picture in survey.pictures if picture.problem is None)
    return _embedded(survey.settings, files)


@lru_cache(maxsize=1)
def _embedded(settings: Settings, files: tuple[tuple[str, Path], ...]) -> tuple[Any, list[str], numpy.ndarray]:
    """See `embedded`; kept, since several questions are asked of them, and in half precision, so that many fit."""
    import numpy
    import torch

    module = registry.load("captioners", "clip")
    model = module.build(module.Config(), settings.model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    kept: list[str] = []
    rows: list[numpy.ndarray] = []
    for batch in _decoded(files, model.batch_size):
        rows.append(model.embed_pictures([picture for _, picture in batch]).astype(numpy.float16))
        kept += [name for name, _ in batch]
    return model, kept, numpy.concatenate(rows) if rows else numpy.zeros((0, 1), numpy.float16)


def judge(
    model: Embedder, names: Sequence[str], pictures_ND: numpy.ndarray, rows: Sequence[tuple[int, str]], title: str
) -> list[Finding]:
    """Return the findings about captions, given as (place of its picture, text)."""
    scores, ranks, lost = [], [], []
    for start in range(0, len(rows), ROWS):
        chunk = rows[start : start + ROWS]
        cosines = _cosines(model, [text for _, text in chunk], pictures_ND)
        for (own, text), row in zip(chunk, cosines, strict=True):
            mine = float(row[own])
            scores.append(CLIP_SCORE_WEIGHT * max(mine, 0.0))
            ranks.append(1 + int((row > mine).sum()))
            if float(row.max()) - mine > MARGIN:
                lost.append((scores[-1], names[own], ranks[-1], text))
    found = sum(rank == 1 for rank in ranks)
    summary: Mapping[str, object] = {
        "found": found,
        "share": f"{found / len(ranks):.0%}",
        "mrr": f"{sum(1 / rank for rank in ranks) / len(ranks):.2f}",
        "score": f"{sum(scores) / len(scores):.2f}",
        "model": title,
    }
    findings = [Finding("captions", "retrieval", Severity.GOOD, len(ranks), summary)]
    if lost:
        items = [
            Item(
                (name,),
                Note(
                    "captions.not_found_back.detail",
                    {"score": f"{score:.2f}", "rank": rank, "caption": quoted(text)},
                ),
            )
            for score, name, rank, text in sorted(lost)
        ]
        params = {"total": len(ranks), "model": title}
        findings.insert(0, Finding("captions", "not_found_back", Severity.SHOULD, len(items), params, items))
    return findings


def _cosines(model: Embedder, texts: Sequence[str], pictures_ND: numpy.ndarray) -> numpy.ndarray:
    import numpy

    texts_ND = model.embed_texts(texts)
    blocks = [
        texts_ND @ pictures_ND[start : start + 8 * ROWS].astype(numpy.float32).T
        for start in range(0, len(pictures_ND), 8 * ROWS)
    ]
    return numpy.concatenate(blocks, axis=1)


def _decoded(files: Sequence[tuple[str, Path]], size: int) -> Iterator[list[tuple[str, Any]]]:
    """Yield batches of decoded pictures; one that has become unreadable since the survey is left out."""
    batch: list[tuple[str, Any]] = []
    for name, path in files:
        try:
            batch.append((name, decode.decode(path)))
        except DataError:
            continue
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
