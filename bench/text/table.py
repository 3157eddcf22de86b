"""From what was measured to figures, medians, ratios and lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# Name in the JSON file, words above the column, format.
FIGURES = (
    ("target_tokens_a_second", "target tok/s", "12.2f"),
    ("real_tokens_a_second", "real tok/s", "10.1f"),
    ("step_seconds", "s/step", "7.2f"),
    ("job_seconds", "job s", "7.1f"),
    ("peak_gb", "peak GB", "7.2f"),
    ("first_loss", "first loss", "10.4f"),
    ("held_out_loss", "held-out loss", "13.4f"),
)
COMPARED = tuple(name for name, _, _ in FIGURES if name != "first_loss")


@dataclass(frozen=True)
class Run:
    """One run of one side.

    Attributes:
        number: of the round, from 1.
        seconds: of every optimizer step.
        losses: of every optimizer step, before its update.
        peak_bytes: largest resident size.
    """

    side: str
    number: int
    seconds: Sequence[float]
    losses: Sequence[float]
    job_seconds: float
    peak_bytes: int
    held_out_loss: float


def figures(run: Run, shape: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's figures; the first step counts for its loss only."""
    spent = sum(run.seconds[1:])
    return {
        "target_tokens_a_second": sum(shape["targets"][1:]) / spent,
        "real_tokens_a_second": sum(shape["real"][1:]) / spent,
        "step_seconds": spent / (len(run.seconds) - 1),
        "job_seconds": run.job_seconds,
        "peak_gb": run.peak_bytes / 1e9,
        "first_loss": run.losses[0],
        "held_out_loss": run.held_out_loss,
    }


def medians(found: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return each side's median of every figure."""
    sides = dict.fromkeys(side for side, _ in found)
    return {
        side: {name: median(row[name] for s, row in found if s == side) for name, _, _ in FIGURES} for side in sides
    }


def ratios(middle: Mapping[str, Mapping[str, float]], ours: str = "ours") -> dict[str, dict[str, float]]:
    """Return our medians over each other side's."""
    if ours not in middle:
        return {}
    others = [side for side in middle if side != ours]
    return {f"{ours}/{side}": {n: middle[ours][n] / middle[side][n] for n in COMPARED} for side in others}


def shape_lines(name: str, shape: Mapping[str, Any], base_loss: float) -> Iterator[str]:
    """Describe the rows."""
    real, targets, padded = (sum(shape[key]) for key in ("real", "targets", "padded"))
    places = ", ".join(f"{key} {value}" for key, value in shape["lengths"].items())
    yield f"rows: {name}, {shape['rows']} in {len(shape['real'])} steps, {real:,} tokens, {targets / real:.0%} targets"
    yield f"lengths: {places}; {shape['over_400']} over 400; padded by fours {padded / real:.2f} times as many"
    yield f"held-out loss of the base: {base_loss:.4f}"


def table(found: Sequence[tuple[str, Mapping[str, float]]]) -> Iterator[str]:
    """Yield one line a run, a median a side, and the ratios."""
    yield " ".join([f"{'':14}", *(f"{words:>{_width(shown)}}" for _, words, shown in FIGURES)])
    for side, row in found:
        yield _line(side, row)
    middle = medians(found)
    for side, row in middle.items():
        yield _line(f"median {side}", row)
    for pair, row in ratios(middle).items():
        yield _line(pair, row, ".3f")


def _line(title: str, row: Mapping[str, float], digits: str = "") -> str:
    """Put a row's figures under their words, each with its own digits or all with the same."""
    widths = [(name, _width(shown), digits or shown[shown.index(".") :]) for name, _, shown in FIGURES]
    cells = [f"{row[name]:{width}{own}}" if name in row else " " * width for name, width, own in widths]
    return " ".join([f"{title:14}", *cells])


def _width(shown: str) -> int:
    return int(shown.partition(".")[0])
