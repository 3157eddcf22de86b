"""Which pictures show the same: one is the other saved again, scaled, recoloured a little, mirrored, or cut out of it.

1. Every picture is described by 8 x 8 cells of brightness, as a small code of its lower frequencies, and so is every
   window of it that a crop might be: each scale and place, a grid fine enough that the nearest window matches.
2. Codes are looked up in lists around pivots (an inverted file: Jégou et al. 2011, Product Quantization for Nearest
   Neighbor Search, section IV), so that the work grows more slowly than the square of the count.
3. What matches is compared in `comparing`, pixel by pixel.

Legend: N pictures, W windows, C code length.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy

from lora_scripts.doctor.comparing import Box, Match, areas, compare, surface_terms
from lora_scripts.doctor.miniatures import SIDE, Miniatures

CELLS = 8
STEP = 1.1
"""Between scales; half of it either way is within what a code tolerates."""
SHIFT = 0.1
"""Between places, as a share of the window."""
LEAST_AREA = 0.36
"""A little less than the crops that are looked for (0.4), as the nearest window may be smaller."""
LEAST_SIDE = 0.38
LIKE = 0.8
"""Correlation of codes from which a pair is compared; those of the same picture have 0.9 and more."""
FLAT = 1.5
"""Standard deviation of the cells about a smooth surface, in levels: with less, all are alike, as gradients are."""
BATCH = 48
"""Pictures whose windows are looked up together."""
FEW = 1500
"""Entries up to which all are compared with all."""
PROBES = 3
MOST_CANDIDATES = 12
"""Pictures that one is compared with in full, the likeliest first: a set of the same thing all over is a group."""


@dataclass(frozen=True)
class Entry:
    """A picture to look at: its row in the miniatures, and (width, height)."""

    row: int
    size: tuple[int, int]


@dataclass(frozen=True)
class _Windows:
    """Windows of one relation between the shapes of a picture and its part."""

    boxes: tuple[Box, ...]
    columns: numpy.ndarray
    rows: numpy.ndarray


def search(
    entries: Sequence[Entry], miniatures: Miniatures, advance: Callable[[int, int], None] | None = None
) -> list[Match]:
    """Return the pairs of entries of which one shows the same as the other or a part of it.

    Args:
        advance: is told how many of how many entries are done.
    """
    index = _Index(entries, miniatures)
    found: list[Match] = []
    done: set[tuple[int, int]] = set()
    for start in range(0, len(entries), BATCH):
        wholes = range(start, min(start + BATCH, len(entries)))
        for whole, part, mirrored, box in _candidates(index, wholes):
            # The other way round it may be found as well, when both are nearly the same part.
            if (whole, part) in done:
                continue
            match = compare(index.view(whole), index.view(part), box, mirrored=mirrored)
            if match is not None:
                done |= {(whole, part), (part, whole)}
                found.append(Match(whole, part, match.box, match.mirrored, match.score))
        if advance is not None:
            advance(wholes.stop, len(entries))
    return found


class _Index:
    """The codes of all entries, upright and mirrored, in lists."""

    def __init__(self, entries: Sequence[Entry], miniatures: Miniatures):
        self.entries, self.miniatures = entries, miniatures
        ratios = numpy.array([entry.size[0] / max(1, entry.size[1]) for entry in entries])
        self.shapes = numpy.rint(numpy.log(ratios) / math.log(STEP)).astype(int)
        codes, kept = _whole_codes(entries, miniatures)
        # Two codes an entry: as it is, and mirrored.
        self.codes = codes
        self.owners = kept
        lists = 1 if len(codes) <= FEW else 2 ** round(math.log2(math.sqrt(len(codes))))
        self.pivots = codes[:1]
        if lists > 1:
            chosen = numpy.random.default_rng(0).choice(len(codes), lists, replace=False)
            self.pivots = codes[numpy.sort(chosen)]
        near = _nearest(codes, self.pivots, 1)[:, 0] if len(codes) else numpy.empty(0, int)
        self.lists = [numpy.flatnonzero(near == number) for number in range(len(self.pivots))]

    def view(self, number: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return (brightness, colour) of an entry."""
        row = [self.entries[number].row]
        return self.miniatures.grey(row)[0], self.miniatures.colour(row)[0]


def _candidates(index: _Index, wholes: range) -> Iterator[tuple[int, int, bool, Box]]:
    """Yield (whole, part, mirrored, box) for windows of some pictures whose code is that of another picture."""
    best: dict[tuple[int, int, bool], tuple[float, Box]] = {}
    grey = index.miniatures.grey([index.entries[number].row for number in wholes]).astype(numpy.float32)
    shapes = sorted({*index.shapes.tolist()})
    for shape in sorted({index.shapes[number] for number in wholes}):
        mine = [number for number in wholes if index.shapes[number] == shape]
        for other in shapes:
            windows = _windows(int(other - shape))
            if windows.boxes:
                codes, owners, places = _window_codes(grey[[number - wholes.start for number in mine]], windows)
                wanted = index.shapes[index.owners >> 1] == other
                for window, entry, score in _look_up(index, codes, wanted):
                    whole, part = mine[owners[window]], int(index.owners[entry] >> 1)
                    key = (whole, part, bool(index.owners[entry] & 1))
                    if whole != part and score > best.get(key, (0.0,))[0]:
                        best[key] = (score, windows.boxes[places[window]])
    by_whole: dict[int, list[tuple[float, int, bool, Box]]] = defaultdict(list)
    for (whole, part, mirrored), (score, box) in best.items():
        by_whole[whole].append((score, part, mirrored, box))
    for whole in sorted(by_whole):
        for _, part, mirrored, box in sorted(by_whole[whole], key=lambda each: -each[0])[:MOST_CANDIDATES]:
            yield whole, part, mirrored, box


def _look_up(index: _Index, codes: numpy.ndarray, wanted: numpy.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield (window, entry, correlation) of what is alike; `wanted` says which entries have the right shape."""
    if not len(codes) or not wanted.any():
        return
    near = _nearest(codes, index.pivots, min(PROBES, len(index.pivots)))
    for number, entries in enumerate(index.lists):
        entries = entries[wanted[entries]]
        windows = numpy.flatnonzero((near == number).any(axis=1))
        if not len(entries) or not len(windows):
            continue
        scores = codes[windows] @ index.codes[entries].T
        # Of each picture's windows only the best for an entry matters; they are few enough to sort out later.
        for place, entry in zip(*numpy.nonzero(scores > LIKE), strict=True):
            yield int(windows[place]), int(entries[entry]), float(scores[place, entry])


def _nearest(codes: numpy.ndarray, pivots: numpy.ndarray, count: int) -> numpy.ndarray:
    if len(pivots) <= count:
        return numpy.tile(numpy.arange(len(pivots)), (len(codes), 1))
    return numpy.argpartition(-(codes @ pivots.T), count - 1, axis=1)[:, :count]


def _whole_codes(entries: Sequence[Entry], miniatures: Miniatures) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return codes (n, C), and for each twice the entry's number, plus 1 where it is mirrored."""
    codes, owners = [numpy.empty((0, CELLS * CELLS - 1), numpy.float32)], [numpy.empty(0, int)]
    for start in range(0, len(entries), 256):
        part = entries[start : start + 256]
        cells = miniatures.grey([entry.row for entry in part]).astype(numpy.float32)
        cells = cells.reshape(len(part), CELLS, SIDE // CELLS, CELLS, SIDE // CELLS).mean(axis=(2, 4))
        numbers = 2 * numpy.arange(start, start + len(part))
        for mirrored, view in enumerate((cells, cells[:, :, ::-1])):
            code, kept = _code(view.reshape(len(part), -1))
            codes.append(code)
            owners.append(numbers[kept] + mirrored)
    return numpy.concatenate(codes), numpy.concatenate(owners)


def _window_codes(grey: numpy.ndarray, windows: _Windows) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Return the codes of all windows of pictures, and for each the picture's place and the window's."""
    lines = _lines()
    stacked = numpy.concatenate([areas(left, right, CELLS) for left, right in lines]).astype(numpy.float32)
    cells = stacked @ grey @ stacked.T
    cells = cells.reshape(len(grey), len(lines), CELLS, len(lines), CELLS)
    chosen = cells[:, windows.rows, :, windows.columns].transpose(1, 0, 2, 3)
    codes, kept = _code(chosen.reshape(-1, CELLS * CELLS))
    places = numpy.flatnonzero(kept)
    return codes, places // len(windows.boxes), places % len(windows.boxes)


def _code(cells: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return unit vectors for rows of cells, and which rows have any."""
    kept = (cells @ _without_surface()).std(axis=1) > FLAT
    codes = cells[kept] @ _transform()
    length = numpy.linalg.norm(codes, axis=1, keepdims=True)
    return codes / numpy.maximum(length, 1e-6), kept


@cache
def _without_surface() -> numpy.ndarray:
    """The projection that takes away the quadratic surface which fits the cells best."""
    terms = surface_terms(CELLS)
    return numpy.eye(CELLS * CELLS, dtype=numpy.float32) - (terms @ numpy.linalg.pinv(terms)).astype(numpy.float32)


@cache
def _transform() -> numpy.ndarray:
    """The DCT-II of the cells without its mean, higher frequencies raised: natural pictures have little of them."""
    places = (2 * numpy.arange(CELLS) + 1) * numpy.pi / (2 * CELLS)
    waves = numpy.cos(numpy.outer(numpy.arange(CELLS), places))
    waves /= numpy.linalg.norm(waves, axis=1, keepdims=True)
    frequency = numpy.hypot(*numpy.meshgrid(numpy.arange(CELLS), numpy.arange(CELLS))).ravel()
    matrix = numpy.kron(waves, waves) * numpy.sqrt(frequency)[:, None]
    return numpy.ascontiguousarray(matrix[1:].T.astype(numpy.float32))


@cache
def _lines() -> tuple[tuple[float, float], ...]:
    """Return (start, end) of the stretches of a side that a window may take, as shares."""
    return tuple(line for level in range(_levels()) for line in _lines_at(level))


@cache
def _lines_at(level: int) -> tuple[tuple[float, float], ...]:
    length = STEP**-level
    count = math.ceil((1 - length) / (SHIFT * length) - 1e-9) + 1
    starts = numpy.linspace(0, 1 - length, count) if count > 1 else numpy.zeros(1)
    return tuple((float(start), float(start) + length) for start in starts)


def _levels() -> int:
    return math.floor(math.log(1 / LEAST_SIDE) / math.log(STEP)) + 1


@cache
def _windows(difference: int) -> _Windows:
    """Return the windows that have the part's shape; `difference` is how many steps wider it is than the whole."""
    starts = numpy.cumsum([0, *(len(_lines_at(level)) for level in range(_levels()))])
    boxes: list[Box] = []
    columns: list[int] = []
    rows: list[int] = []
    for level in range(_levels()):
        across = level - difference
        if not 0 <= across < _levels() or STEP ** -(level + across) < LEAST_AREA:
            continue
        for j, (top, bottom) in enumerate(_lines_at(level)):
            for i, (left, right) in enumerate(_lines_at(across)):
                boxes.append((left, top, right, bottom))
                columns.append(int(starts[across]) + i)
                rows.append(int(starts[level]) + j)
    return _Windows(tuple(boxes), numpy.array(columns, int), numpy.array(rows, int))


def groups(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return what belongs together when each pair does, each group sorted, by its first."""
    parent: dict[int, int] = {}

    def top(number: int) -> int:
        while parent.setdefault(number, number) != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for first, second in pairs:
        low, high = sorted((top(first), top(second)))
        parent[high] = low
    members: Mapping[int, list[int]] = defaultdict(list)
    for number in sorted(parent):
        members[top(number)].append(number)
    return list(members.values())
