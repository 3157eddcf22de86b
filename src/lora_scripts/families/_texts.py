"""Rows of text as examples: tokenised, counted, cached; what is cut or dropped is told."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lora_scripts.data.cache import Cache, entry_key
from lora_scripts.data.record import Note, TextRow
from lora_scripts.errors import BaseModelError, ConfigError, DataError
from lora_scripts.families._chat import Renderer, Tokens, pieces

# Raised whenever the same rows and tokenizer would give other tokens.
TOKENS_VERSION = 2
ROUND = 64
DEFAULT_LONGEST = 2048
SHAPE_STEP = 32
LEARNED = frozenset({"chat", "completion", "text"})


@dataclass(frozen=True, eq=False)
class TextExample:
    """One row as tokens; see `data.record.Example`.

    Attributes:
        sequences: one; for a pair the better and the worse; for a thumb the answer, and another row's answer to the
            same prompt, from which the objective `kto` estimates how far the policy has moved.
    """

    row: TextRow
    sequences: tuple[Tokens, ...]

    @property
    def id(self) -> str:
        """The row's."""
        return self.row.id

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any token, any weight, and what the row asks of the objective."""
        digest = hashlib.sha256(f"{self.row.kind}\0{self.row.liked}\0{self.row.weight}\0{self.row.repeats}".encode())
        for tokens in self.sequences:
            digest.update(tokens.digest())
        return digest.hexdigest()

    @property
    def split_key(self) -> str:
        """Rows of one customer or thread, or of one message, stay on one side of the held-out part."""
        return self.row.group or self.row.message or self.fingerprint

    @property
    def group(self) -> tuple[()]:
        """Texts of any length may share a micro-batch."""
        return ()

    @property
    def repeats(self) -> int:
        """The row's."""
        return self.row.repeats

    @property
    def weight(self) -> float:
        """The row's."""
        return self.row.weight

    @cached_property
    def mass(self) -> float:
        """Its target tokens, times its weight; a pair or a thumb is one thing to learn from."""
        if self.row.kind not in LEARNED:
            return self.weight
        return self.weight * float(self.sequences[0].weights.sum(dtype=np.float64))

    @cached_property
    def length(self) -> int:
        """Tokens it takes."""
        return sum(len(tokens.ids) for tokens in self.sequences)

    @property
    def kind(self) -> str:
        """The row's."""
        return self.row.kind

    @property
    def shape(self) -> int:
        """Its length, rounded up."""
        return -(-self.length // SHAPE_STEP) * SHAPE_STEP

    @property
    def title(self) -> str:
        """The last thing the user says."""
        turns = [turn.content for turn in self.row.prompt if turn.role == "user"]
        return turns[-1] if turns else ""


@dataclass(frozen=True)
class Limits:
    """How rows become tokens: longest length (None: what the rows need), what is learned of a conversation.

    Attributes:
        context: tokens that the base reads.
        vocabulary: tokens that it knows; 0 where it does not say.
    """

    longest: int | None
    train_on: str
    context: int
    vocabulary: int = 0


def tokenise(
    rows: Sequence[TextRow], renderer: Renderer, limits: Limits, cache: Cache | None, settings: str
) -> tuple[list[TextExample], list[Note], int]:
    """Return the examples, what to say about them, and the longest length.

    Args:
        settings: a hash of everything of the tokenizer that decides the tokens.

    Raises:
        ConfigError: the config's longest length is more than the base reads.
        BaseModelError: the tokenizer makes tokens that the base does not know.
        DataError: nothing is left to learn from, or the chat template refuses a row.
    """
    if limits.longest is not None and limits.longest > limits.context:
        raise ConfigError("llm.past_context", longest=limits.longest, context=limits.context)
    told = _Told()
    sequences = _cached(rows, renderer, limits.train_on, cache, settings, told)
    highest = max((int(t.ids.max(initial=0)) for made in sequences for t in made), default=0)
    if limits.vocabulary and highest >= limits.vocabulary:
        raise BaseModelError("llm.tokens_beyond", path=renderer.path, token=highest, rows=limits.vocabulary)
    longest = limits.longest
    if longest is None:
        need = max((len(t.ids) for made in sequences for t in made), default=1)
        longest = min(-(-need // ROUND) * ROUND, DEFAULT_LONGEST, limits.context)
    examples: list[TextExample] = []
    for row, made in zip(rows, sequences, strict=True):
        examples += _fit(row, made, longest, told)
    if rows and not examples:
        raise DataError("llm.no_targets", rows=len(rows), longest=longest)
    return _with_mismatches(examples, longest), told.notes(examples, longest), longest


def _fit(row: TextRow, made: Sequence[Tokens], longest: int, told: _Told) -> list[TextExample]:
    """Return a row's examples within the longest length; count what that costs."""
    if row.kind == "text":
        parts = pieces(made[0], longest, split=True)
        told.split += len(parts) > 1
        several = [TextExample(replace(row, id=f"{row.id}+{n}" if n else row.id), (t,)) for n, t in enumerate(parts)]
        return [example for example in several if example.sequences[0].targets]
    fitted = tuple(pieces(tokens, longest, split=False)[0] for tokens in made)
    told.cut += any(tokens.cut for tokens in fitted)
    if any(not tokens.targets for tokens in fitted):
        told.untargeted.append(row.id)
        return []
    told.endless += any(not tokens.ended and not tokens.cut for tokens in fitted)
    told.rewritten += any(tokens.skipped for tokens in fitted)
    return [TextExample(row, fitted)]


def _with_mismatches(examples: list[TextExample], longest: int) -> list[TextExample]:
    """Give each thumb another thumb's answer behind its own prompt, chosen by the order of hashes."""
    thumbs = [i for i, example in enumerate(examples) if example.row.kind == "thumb"]
    order = sorted(thumbs, key=lambda i: examples[i].fingerprint)
    for position, index in enumerate(order):
        own, other = examples[index].sequences[0], examples[order[position - 1]].sequences[0]
        prompt, answer = int(np.argmax(own.weights > 0)), int(np.argmax(other.weights > 0))
        ids = np.concatenate([own.ids[:prompt], other.ids[answer:]])[:longest]
        weights = np.concatenate([own.weights[:prompt], other.weights[answer:]])[:longest]
        examples[index] = TextExample(examples[index].row, (own, Tokens(ids, weights)))
    return examples


def _cached(
    rows: Sequence[TextRow], renderer: Renderer, train_on: str, cache: Cache | None, settings: str, told: _Told
) -> list[list[Tokens]]:
    """Tokenise rows, or take them from the cache: one entry for all, named by rows, tokenizer and settings."""
    if cache is None or not rows:
        return [_row(row, renderer, train_on) for row in rows]
    content = json.dumps([asdict(row) for row in rows], ensure_ascii=False, sort_keys=True)
    key = entry_key("tokens", settings, hashlib.sha256(f"{TOKENS_VERSION}{train_on}{content}".encode()).hexdigest())
    try:
        sequences = _unpack(cache.get(key))
        told.reused = True
    except (KeyError, ValueError):
        sequences = [_row(row, renderer, train_on) for row in rows]
        cache.put(key, _pack(sequences))
    return sequences


def _row(row: TextRow, renderer: Renderer, train_on: str) -> list[Tokens]:
    made = renderer.sequence(row, row.answer, train_on)
    if row.kind == "pair":
        made += renderer.sequence(row, row.rejected, train_on)
    return made


def _pack(sequences: Sequence[Sequence[Tokens]]) -> dict[str, Any]:
    import torch

    flat = [tokens for made in sequences for tokens in made]
    return {
        "ids": torch.from_numpy(np.concatenate([tokens.ids for tokens in flat])),
        "weights": torch.from_numpy(np.concatenate([tokens.weights for tokens in flat])),
        "lengths": torch.tensor([len(tokens.ids) for tokens in flat]),
        "ended": torch.tensor([tokens.ended for tokens in flat]),
        "skipped": torch.tensor([tokens.skipped for tokens in flat]),
        "counts": torch.tensor([len(made) for made in sequences]),
    }


def _unpack(entry: Mapping[str, Any]) -> list[list[Tokens]]:
    bounds = np.cumsum(entry["lengths"].numpy())[:-1]
    ids, weights = (np.split(entry[name].numpy(), bounds) for name in ("ids", "weights"))
    told = zip(ids, weights, entry["ended"].tolist(), entry["skipped"].tolist(), strict=True)
    flat = [Tokens(i, w, bool(ended), skipped=skipped) for i, w, ended, skipped in told]
    made, start = [], 0
    for count in entry["counts"].tolist():
        made.append(flat[start : start + count])
        start += count
    return made


class _Told:
    """What happened to the rows on their way to tokens."""

    def __init__(self) -> None:
        self.cut = self.split = self.endless = self.rewritten = 0
        self.untargeted: list[str] = []
        self.reused = False

    def notes(self, examples: Sequence[TextExample], longest: int) -> list[Note]:
        """Return what the plan says."""
        lengths = sorted(len(tokens.ids) for example in examples for tokens in example.sequences)
        if not lengths:
            return []
        targets = sum(tokens.targets for example in examples for tokens in example.sequences)
        kinds = Counter(example.row.kind for example in examples)
        notes = [
            Note("llm.tokens", {
                "rows": len(examples), "tokens": f"{sum(lengths):,}", "share": f"{100 * targets / sum(lengths):.0f}",
                "median": lengths[len(lengths) // 2], "most": lengths[-1], "longest": longest,
                "kinds": ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
            })
        ]  # fmt: skip
        if self.cut:
            notes.append(Note("llm.cut", {"count": self.cut, "longest": longest}))
        if self.split:
            notes.append(Note("llm.split", {"count": self.split, "longest": longest}))
        if self.endless:
            notes.append(Note("llm.endless", {"count": self.endless}))
        if self.rewritten:
            notes.append(Note("llm.rewritten", {"count": self.rewritten}))
        if self.untargeted:
            named = ", ".join(self.untargeted[:5])
            notes.append(Note("llm.untargeted", {"count": len(self.untargeted), "names": named}))
        return notes
