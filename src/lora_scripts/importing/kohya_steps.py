"""How many optimizer steps kohya's sd-scripts make of a data set: pure arithmetic on the pictures' sizes.

A batch never mixes sizes there, so every bucket ends with a batch that may be smaller:
steps an epoch = ceil(sum over buckets of ceil(visits / batch size) / processes / accumulation).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Size = tuple[int, int]


@dataclass(frozen=True)
class BucketRule:
    """The settings of one data set that decide the sizes.

    Attributes:
        resolution: (width, height): its area is the budget, or the one size where `enabled` is false.
        least, most: sides of the given sizes; not used with `no_upscale`.
        step: sides are multiples of it.
    """

    resolution: Size
    enabled: bool = False
    least: int = 256
    most: int = 1024
    step: int = 64
    no_upscale: bool = False


def given_sizes(rule: BucketRule) -> list[Size]:
    """Return the sizes that pictures are enlarged or shrunk to, sorted: as much of the area as each width allows."""
    area, step = rule.resolution[0] * rule.resolution[1], rule.step
    least = max(step, rule.least - rule.least % step)
    most = rule.most + -rule.most % step
    square = max(step, int(math.sqrt(area) // step) * step)
    found = {(square, square)}
    for width in range(least, most + 1, step):
        height = min(most, area // width // step * step)
        if height >= least:
            found |= {(width, height), (height, width)}
    return sorted(found)


def bucket(size: Size, rule: BucketRule, sizes: Sequence[Size]) -> Size:
    """Return the size that a picture (as stored, EXIF rotation not applied) is trained at.

    Args:
        sizes: `given_sizes(rule)`.
    """
    if not rule.enabled:
        return rule.resolution
    if rule.no_upscale:
        return _shrunk(size, rule)
    if size in sizes:
        return size
    aspect = size[0] / size[1]
    return min(sizes, key=lambda one: abs(one[0] / one[1] - aspect))


def _shrunk(size: Size, rule: BucketRule) -> Size:
    """Scale a picture above the budget down so that one side is a multiple of the step; cut the rest of both sides."""
    width, height = size
    area = rule.resolution[0] * rule.resolution[1]
    if width * height > area:
        aspect = width / height
        by_width = _floor(math.sqrt(area * aspect), rule.step)
        by_height = _floor(area / math.sqrt(area * aspect), rule.step)
        other_height, other_width = _floor(by_width / aspect, rule.step), _floor(by_height * aspect, rule.step)
        if _error(by_width, other_height, aspect) < _error(other_width, by_height, aspect):
            width, height = by_width, int(by_width / aspect + 0.5)
        else:
            width, height = int(by_height * aspect + 0.5), by_height
    return width - width % rule.step, height - height % rule.step


def _floor(value: float, step: int) -> int:
    whole = int(value + 0.5)
    return whole - whole % step


def _error(width: int, height: int, aspect: float) -> float:
    return abs(width / height - aspect) if height else math.inf


def batches(pictures: Iterable[tuple[Size, int]], rule: BucketRule, batch_size: int) -> int:
    """Return the batches an epoch of one data set.

    Args:
        pictures: (stored size, visits) of each, regularisation pictures among them.
    """
    sizes = given_sizes(rule) if rule.enabled and not rule.no_upscale else []
    counts: Counter[Size] = Counter()
    for size, visits in pictures:
        counts[bucket(size, rule, sizes)] += visits
    return sum(-(-visits // batch_size) for visits in counts.values())


def regularisation_visits(training: int, repeats: Sequence[int]) -> list[int]:
    """Return how often each regularisation picture is seen an epoch: together as often as the training pictures.

    Each is taken with its own repeats first, until there are enough; then one more each, in turn.

    Args:
        training: visits of training pictures an epoch.
        repeats: of each regularisation picture, in order.
    """
    visits = [0] * len(repeats)
    total = 0
    for index, own in enumerate(repeats):
        if total >= training:
            return visits
        visits[index] = own
        total += own
    missing = max(0, training - total) if repeats else 0
    return [own + missing // len(visits) + (index < missing % len(visits)) for index, own in enumerate(visits)]


def steps_per_epoch(batches: int, accumulation: int, processes: int) -> int:
    """Return the optimizer steps an epoch."""
    return math.ceil(batches / processes / accumulation)
