"""From rows of text to tokens, with a weight for each token that is to be learned.

A conversation is rendered by the tokenizer's own chat template, in transformers' sandbox. What an assistant turn
added to the text, up to and with the end-of-turn token, is what is learned. A span is found by rendering the
conversation up to the turn, and up to and with it: so no template needs marks of its own.

    weights[i] counts the loss of predicting token i from the tokens before it; 0 where it is only read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lora_scripts.data.record import Message, TextRow
from lora_scripts.errors import BaseModelError

TRAIN_ON = ("completions", "last", "all")
# What the sandbox may be asked to render; a template that is longer is not one.
MAX_TEMPLATE = 256 << 10


@dataclass(frozen=True, eq=False)
class Tokens:
    """One sequence.

    Attributes:
        ids: (L,) int32.
        weights: (L,) float32; see above.
        ended: the last target is a token that ends a turn or a text.
        cut: tokens beyond the longest length were cut off.
    """

    ids: np.ndarray
    weights: np.ndarray
    ended: bool = True
    cut: bool = False

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return int((self.weights > 0).sum())

    def digest(self) -> bytes:
        """sha256 over ids and weights."""
        return hashlib.sha256(self.ids.tobytes() + self.weights.tobytes()).digest()


class Renderer:
    """A tokenizer with its chat template.

    Args:
        tokenizer: of transformers, the quick kind, which knows where in the text a token stands.
        path: of the base, for sentences.
        ends: ids that end a turn besides the tokenizer's own end token.
    """

    def __init__(self, tokenizer: Any, path: Any, ends: Sequence[int] = ()):
        self.tokenizer, self.path = tokenizer, path
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is not None and len(template) > MAX_TEMPLATE:
            raise BaseModelError("llm.template_long", path=path, size=len(template), limit=MAX_TEMPLATE)
        self.has_template = template is not None
        own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        self.ends = tuple(dict.fromkeys([*own, *ends]))
        # A template may end a turn with a special token that the tokenizer does not call its end.
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._end_words = list(dict.fromkeys([*(tokenizer.convert_ids_to_tokens(n) for n in self.ends), *special]))

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Ids at which an answer is over."""
        return tuple(dict.fromkeys([*self.ends, *self._end.tolist()[-1:]]))

    def text(self, turns: Sequence[Message], *, ask: bool) -> str:
        """Render turns; `ask` adds the words after which the assistant speaks.

        Raises:
            BaseModelError: there is no template, or it refuses these turns.
        """
        if not self.has_template:
            raise BaseModelError("llm.no_template", path=self.path)
        rows = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # noqa: BLE001 - a template raises what it likes
            reason = str(error).split("\n")[0][:160] or type(error).__name__
            raise BaseModelError("llm.template_refused", path=self.path, reason=reason) from error

    def prompt(self, turns: Sequence[Message]) -> np.ndarray:
        """Return the ids after which the answer begins."""
        if self.has_template:
            return self._ids(self.text(turns, ask=True))
        return np.concatenate([self._start, self._ids(_plain(turns))])

    def answer(self, text: str) -> np.ndarray:
        """Return the ids of an answer, with the token that ends it."""
        return np.concatenate([self._ids(text), self._end])

    def sequence(self, row: TextRow, answer: Sequence[Message], train_on: str) -> list[Tokens]:
        """Return a row's tokens: one sequence, or several pieces of a long text (see `pieces`)."""
        if row.kind == "text":
            ids = np.concatenate([self._start, self._ids(answer[0].content), self._end])
            weights = np.ones(len(ids), np.float32)
            weights[0] = 0
            return [Tokens(ids, weights, ended=bool(self.ends))]
        if row.kind == "completion" and not self.has_template:
            return [self._completion(row.prompt, answer, train_on)]
        return [self._chat([*row.prompt, *answer], train_on if row.kind == "chat" else "completions", len(row.prompt))]

    def _completion(self, prompt: Sequence[Message], answer: Sequence[Message], train_on: str) -> Tokens:
        before, after = self.prompt(prompt), self.answer("".join(turn.content for turn in answer))
        weights = np.concatenate([np.full(len(before), train_on == "all"), np.ones(len(after))]).astype(np.float32)
        weights[0] = 0
        return Tokens(np.concatenate([before, after]), weights, ended=bool(self.ends))

    def _chat(self, turns: Sequence[Message], train_on: str, prompt: int) -> Tokens:
        """Render the whole and find the assistant's spans; in a row with an answer only turns behind the prompt."""
        whole = self.text(turns, ask=False)
        spans, ended = [], True
        # A chat row has its turns in `prompt`; rows of other kinds learn what comes behind it.
        first = 0 if prompt == len(turns) else prompt
        speaking = [i for i, turn in enumerate(turns) if turn.role == "assistant" and i >= first]
        for number in speaking[-1:] if train_on == "last" else speaking:
            span = self._span(turns, number, whole)
            if span is None:
                continue
            weight = 1.0 if turns[number].weight is None else float(turns[number].weight or 0.0)
            spans.append((*span[:2], weight))
            ended = span[2]
        if train_on == "all":
            spans = [(0, len(whole), 1.0)]
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        weights = np.zeros(len(encoded["input_ids"]), np.float32)
        places = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        for start, end, weight in spans:
            inside = (places[:, 0] >= start) & (places[:, 1] <= end) & (places[:, 0] < places[:, 1])
            weights[inside] = weight
        weights[:1] = 0
        return Tokens(np.asarray(encoded["input_ids"], np.int32), weights, ended=ended)

    def _span(self, turns: Sequence[Message], number: int, whole: str) -> tuple[int, int, bool] | None:
        """Return (start, end, ended) of a turn in the whole text; None where the template rewrites earlier turns."""
        before = self.text(turns[:number], ask=True)
        upto = self.text(turns[: number + 1], ask=False)
        if not (whole.startswith(before) and upto.startswith(before)):
            return None
        if not whole.startswith(upto):
            upto = whole if number == len(turns) - 1 else ""
        content = turns[number].content.strip()
        body = upto.find(content, len(before)) if content else len(before)
        if not upto or body < 0:
            return None
        marks = [(upto.find(word, body + len(content)), word) for word in self._end_words]
        found = [(place, word) for place, word in marks if place >= 0]
        if not found:
            return len(before), len(upto), False
        place, word = min(found)
        return len(before), place + len(word), True

    def _ids(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    @cached_property
    def _start(self) -> np.ndarray:
        """The tokens that this tokenizer puts in front of every text by itself, such as <s>."""
        both = self.tokenizer("a")["input_ids"]
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        count = next((i for i in range(len(both)) if both[i : i + len(bare)] == bare), 0)
        return np.asarray(both[:count], np.int32)

    @cached_property
    def _end(self) -> np.ndarray:
        """What ends an answer: the end of a turn where a chat template says one, else the end of a text."""
        if self.has_template:
            turn = [Message("user", "a"), Message("assistant", "b")]
            before, upto = self.text(turn[:1], ask=True), self.text(turn, ask=False)
            tail = upto[upto.find("b", len(before)) + 1 :] if upto.startswith(before) else ""
            found = [(tail.find(word), word) for word in self._end_words if word in tail]
            if found:
                return self._ids(tail[: min(found)[0] + len(min(found)[1])])
        return np.asarray(self.ends[:1], np.int32)


def pieces(tokens: Tokens, longest: int, *, split: bool) -> list[Tokens]:
    """Make a sequence fit: a text is split into pieces, all of which are learned; anything else loses its end."""
    total = len(tokens.ids)
    if total <= longest:
        return [tokens]
    if not split:
        return [Tokens(tokens.ids[:longest], tokens.weights[:longest], ended=False, cut=True)]
    made = []
    for start in range(0, total, longest):
        weights = tokens.weights[start : start + longest].copy()
        weights[0] = 0
        last = start + longest >= total
        made.append(Tokens(tokens.ids[start : start + longest], weights, ended=tokens.ended and last))
    return [piece for piece in made if piece.targets]


def _plain(turns: Sequence[Message]) -> str:
    """Turns of a base without a chat template: their words one after the other, as they are."""
    return "\n\n".join(turn.content for turn in turns)
