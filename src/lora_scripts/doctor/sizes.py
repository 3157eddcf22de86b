"""What sizes pictures are trained at, and what of them is cut away: told before training, as training does it."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_scripts.data import buckets
from lora_scripts.data.decode import crop_box
from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item, Severity

if TYPE_CHECKING:
    from lora_scripts.doctor.survey import Picture, Survey

LEAST_KEPT = 0.5
"""Training refuses a picture of which less than this share would be left, as the reader of pictures does."""
MOST_LOST = 0.15
"""Share of a picture beyond which a crop takes more than a margin."""
SMALL = 0.75
"""Of the resolution: a picture that is smaller shows it; just below it nobody sees a difference."""
MOST = 0.5
"""Where more of the pictures are small, the resolution does not fit the set, and no file is to blame."""


@dataclass(frozen=True)
class Bucket:
    """Pictures that are trained at one size.

    Attributes:
        size: (width, height) in pixels.
        names: of the pictures, sorted.
    """

    size: tuple[int, int]
    names: tuple[str, ...]


def preview(survey: Survey) -> list[Bucket]:
    """Return the buckets of the readable pictures, the fullest first."""
    names: dict[tuple[int, int], list[str]] = {}
    for picture in survey.readable:
        bucket = _bucket(picture, survey)
        if bucket is not None and buckets.kept(picture.size, bucket) >= LEAST_KEPT:
            names.setdefault(bucket, []).append(picture.name)
    found = [Bucket(size, tuple(sorted(pictures))) for size, pictures in names.items()]
    return sorted(found, key=lambda bucket: (-len(bucket.names), bucket.size))


def find(survey: Survey) -> Sequence[Finding]:
    """Return what does not fit the training size, and the table of buckets."""
    too_small, too_long, cropped = [], [], []
    for picture in survey.readable:
        bucket, size = _bucket(picture, survey), _text(picture.size)
        if min(picture.size) < survey.settings.multiple:
            note = Note("pictures.too_small.detail", {"size": size, "multiple": survey.settings.multiple})
            too_small.append(Item((picture.name,), note))
            continue
        if bucket is None or buckets.kept(picture.size, bucket) < LEAST_KEPT:
            note = Note("pictures.too_long.detail", {"size": size, "aspect": buckets.MAX_ASPECT})
            too_long.append(Item((picture.name,), note))
            continue
        lost = 1 - buckets.kept(picture.size, bucket)
        # A small picture loses more, as there are few sizes that fit into it; being small is what is wrong with it.
        if lost > MOST_LOST and not _is_small(picture, survey):
            params = {"size": size, "bucket": _text(bucket), "percent": round(100 * lost)}
            cropped.append(Item((picture.name,), Note("pictures.cropped.detail", params), _box(picture.size, bucket)))
    shown: dict[str, object] = {"multiple": survey.settings.multiple, "resolution": survey.settings.resolution}
    found = [
        Finding("pictures", "too_small", Severity.MUST, len(too_small), shown, too_small),
        Finding("pictures", "too_long", Severity.MUST, len(too_long), {"aspect": buckets.MAX_ASPECT}, too_long),
        *_small(survey),
        Finding("pictures", "cropped", Severity.SHOULD, len(cropped), {"percent": round(100 * MOST_LOST)}, cropped),
        *_table(survey),
    ]
    return [finding for finding in found if finding.count]


def _bucket(picture: Picture, survey: Survey) -> tuple[int, int] | None:
    return buckets.choose(picture.size, survey.settings.resolution, survey.settings.multiple)


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _box(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[float, float, float, float]:
    left, top, right, bottom = crop_box(size, bucket)
    return left / size[0], top / size[1], right / size[0], bottom / size[1]


def _is_small(picture: Picture, survey: Survey) -> bool:
    return math.sqrt(picture.size[0] * picture.size[1]) < SMALL * survey.settings.resolution


def _small(survey: Survey) -> list[Finding]:
    """Pictures that are never enlarged and so are trained at less than was asked for."""
    settings, readable = survey.settings, survey.readable
    least = SMALL * settings.resolution
    small = [p for p in readable if math.sqrt(p.size[0] * p.size[1]) < least and min(p.size) >= settings.multiple]
    if len(small) > MOST * len(readable) and len(readable) > EXAMPLES:
        typical = round(statistics.median(math.sqrt(p.size[0] * p.size[1]) for p in readable))
        params: dict[str, object] = {"total": len(readable), "resolution": settings.resolution, "typical": typical}
        return [Finding("pictures", "small_set", Severity.SHOULD, len(small), params)]
    items = []
    for picture in small:
        bucket = _bucket(picture, survey)
        sides = {"size": _text(picture.size), "bucket": _text(bucket) if bucket else "-"}
        items.append(Item((picture.name,), Note("pictures.small.detail", sides)))
    return [Finding("pictures", "small", Severity.SHOULD, len(items), {"resolution": settings.resolution}, items)]


def _table(survey: Survey) -> list[Finding]:
    """The buckets, and how many of them cannot fill a batch."""
    found = preview(survey)
    counts = Counter({_text(bucket.size): len(bucket.names) for bucket in found})
    lines = tuple(f"{size}: {count}" for size, count in counts.most_common(EXAMPLES))
    batch = survey.settings.batch_size
    lonely = [f"{_text(bucket.size)}: {len(bucket.names)}" for bucket in found if len(bucket.names) < batch]
    # A set that has fewer pictures than a batch has no bucket that could do better.
    if sum(counts.values()) < 2 * batch:
        lonely = []
    shown: dict[str, object] = {"pictures": sum(counts.values())}
    return [
        Finding("pictures", "buckets", Severity.GOOD, len(found), shown, examples=lines),
        Finding(
            "pictures",
            "lonely_buckets",
            Severity.GOOD,
            len(lonely),
            {"batch": batch},
            examples=tuple(lonely[:EXAMPLES]),
        ),
    ]
