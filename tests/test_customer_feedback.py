"""The messages of the example: enough of them, of every kind, said in many ways, none known to the held-out part."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

LABELS = {"account", "billing", "delivery", "feature_request", "how_to", "praise", "product_fault", "returns"}
PARTS = {"train.en": 736, "train.zh": 176, "inbox.en": 160, "inbox.zh": 48, "heldout.en": 192, "heldout.zh": 64}
WORD = re.compile(r"[\u3400-\u9fff]|[a-z']+|#", re.IGNORECASE)
NUMBER = re.compile(r"[a-z]*-?\d[\w.,:/-]*")
MOST_SHARED = 3


def words(text: str) -> list[str]:
    """Words, single Chinese characters, and # for anything with a digit."""
    return WORD.findall(NUMBER.sub("#", text.lower()))


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


@pytest.fixture(scope="module")
def parts(root: Path) -> dict[str, list[dict]]:
    folder = root / "examples/customer_feedback"
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in PARTS
    }


def test_how_many_there_are(parts: dict[str, list[dict]]):
    assert {name: len(rows) for name, rows in parts.items()} == PARTS
    everything = [row for rows in parts.values() for row in rows]
    assert len({row["id"] for row in everything}) == len({row["message"] for row in everything}) == 1376
    assert sum("reply" in row for row in everything) == 288


@pytest.mark.parametrize("name", PARTS)
def test_every_kind_is_there_alike(parts: dict[str, list[dict]], name: str):
    counts = Counter(row["label"] for row in parts[name])
    assert counts.keys() == LABELS and len(set(counts.values())) == 1
    assert {row["lang"] for row in parts[name]} == {name[-2:]}


def test_customers_stay_on_one_side(parts: dict[str, list[dict]]):
    sides: dict[str, set[str]] = defaultdict(set)
    for name, rows in parts.items():
        sides[name.split(".")[0]] |= {row["customer"] for row in rows}
    assert len(sides) == 3
    assert not sides["train"] & sides["heldout"] and not sides["inbox"] & sides["heldout"]
    assert not sides["train"] & sides["inbox"]


def test_no_run_of_five_words_stands_in_more_than_three_messages(parts: dict[str, list[dict]]):
    seen: dict[tuple[str, ...], int] = defaultdict(int)
    for rows in parts.values():
        for row in rows:
            for run in runs(row["message"], 5):
                seen[run] += 1
    assert len(seen) > 20_000
    assert {" ".join(run): count for run, count in seen.items() if count > MOST_SHARED} == {}


def test_no_run_of_eight_words_is_shared_with_the_held_out_part(parts: dict[str, list[dict]]):
    known = {
        run
        for name in PARTS
        if not name.startswith("heldout")
        for row in parts[name]
        for run in runs(row["message"], 8)
    }
    held = {
        run for name in PARTS if name.startswith("heldout") for row in parts[name] for run in runs(row["message"], 8)
    }
    assert len(known) > 10_000 and len(held) > 2_000
    assert known & held == set()


def test_lengths_vary(parts: dict[str, list[dict]]):
    lengths = sorted(len(words(row["message"])) for row in parts["train.en"])
    assert lengths[0] >= 2 and lengths[-1] <= 130
    assert lengths[len(lengths) // 10] <= 9 and lengths[len(lengths) * 9 // 10] >= 45


def test_runs_are_counted_as_said():
    assert words("Order AB-1234, für 12.50: don't") == ["order", "#", "f", "r", "#", "don't"]
    assert runs("我 的快递没到", 5) == {tuple("我的快递没"), tuple("的快递没到")}
