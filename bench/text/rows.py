"""Rows of a chosen shape out of the example's messages, and the one way in which tokens are counted.

A prompt is messages behind one another, cut where the wanted length is reached. A row either drafts (the completion is
the replies of its first messages, as many as fit) or sorts (it is the first message's label). The same arguments give
the same rows.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "customer_feedback"
SHAPES = ("mixed", "equal")
Row = Mapping[str, list[dict[str, str]]]
Message = Mapping[str, str]

MEDIAN, SPREAD, FEWEST, MOST = 90, 1.0, 12, 640
EQUAL, JITTER = 128, 3
# Share of the rows that draft replies, what replies may take of a row, and how many are looked at for fitting ones.
REPLIES, REPLY_SHARE, LOOKED_AT = 0.6, 0.6, 12


@dataclass(frozen=True)
class Tokens:
    """A row as the model reads it; tokens `start` to `end` are the targets."""

    ids: list[int]
    start: int
    end: int

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return self.end - self.start


def tokens(row: Row, tokenizer: Any) -> Tokens:
    """Render a row by the chat template; targets are the completion and the token that ends its turn."""
    before = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
    start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
    return Tokens(ids, start, end)


def make(shape: str, count: int, part: str, tokenizer: Any) -> list[Row]:
    """Return `count` different rows.

    Args:
        shape: "mixed", the template's tokens and a lognormal number of others, or "equal".
        part: "train" or "heldout", of the example's files.
    """
    chance = random.Random(f"{shape} {part}")
    messages = [json.loads(line) for path in sorted(EXAMPLE.glob(f"{part}.*.jsonl")) for line in _lines(path)]
    chance.shuffle(messages)
    every = _around(messages)
    answered = _around([message for message in messages if message.get("reply")])
    frame = len(tokens(_row("", ""), tokenizer).ids)
    made: dict[str, Row] = {}
    while len(made) < count:
        room = max(FEWEST, _length(shape, frame, chance) - frame)
        asked: list[Message] = []
        completion = ""
        if chance.random() < REPLIES:
            asked, completion = _replies(answered, room, tokenizer)
        if not asked:
            asked = [next(every)]
            completion = asked[0]["label"]
        prompt = _fill(asked, every, max(FEWEST, room - _count(completion, tokenizer)), tokenizer)
        made.setdefault(prompt, _row(prompt, completion))
    return list(made.values())


def _replies(answered: Iterator[Message], room: int, tokenizer: Any) -> tuple[list[Message], str]:
    """Return messages whose replies, together, take most of what they may take of the room; none where none fits."""
    asked: list[Message] = []
    completion = ""
    for message in islice(answered, LOOKED_AT):
        longer = f"{completion}\n\n{message['reply']}".strip()
        if _count(longer, tokenizer) <= REPLY_SHARE * room:
            asked.append(message)
            completion = longer
    return asked, completion


def _length(shape: str, frame: int, chance: random.Random) -> int:
    """Draw how many tokens a row should have."""
    if shape == "equal":
        return EQUAL + chance.randint(-JITTER, JITTER)
    return min(MOST, frame + round(chance.lognormvariate(math.log(MEDIAN - frame), SPREAD)))


def _fill(asked: Sequence[Message], more: Iterator[Message], room: int, tokenizer: Any) -> str:
    """Put messages behind one another and cut after so many tokens."""
    text = "\n\n".join(message["message"] for message in asked)
    while _count(text, tokenizer) < room:
        text += "\n\n" + next(more)["message"]
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: places[room - 1][1]].strip()


def _row(prompt: str, completion: str) -> Row:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def _count(text: str, tokenizer: Any) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _around(messages: Sequence[Message]) -> Iterator[Message]:
    """Go through the messages again and again."""
    while True:
        yield from messages


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Read JSON lines."""
    return [json.loads(line) for line in _lines(path)]


def percentiles(values: Sequence[int], shares: Sequence[int] = (0, 10, 50, 90, 100)) -> dict[str, int]:
    """Return the values below which these shares of all lie, in per cent."""
    ordered = sorted(values)
    at: Callable[[int], int] = lambda share: ordered[round((len(ordered) - 1) * share / 100)]  # noqa: E731
    return {f"p{share}": at(share) for share in shares}
