"""From rows of text to tokens, with a weight for each token that is to be learned.

A conversation is rendered by the tokenizer's own chat template, in transformers' sandbox. What an assistant turn
added to the text, up to and with the end-of-turn token, is what is learned. A span is found by rendering the
conversation up to the turn, and up to and with it: so no template needs marks of its own. An answer that a template
writes in other words once the conversation goes on is only read, and counted.

    weights[i] counts the loss of predicting token i from the tokens before it; 0 where it is only read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lora_scripts.data.record import Message, TextRow
from lora_scripts.errors import BaseModelError, DataError

TRAIN_ON = ("completions", "last", "all")
# What the sandbox may be asked to render; a template that is longer is not one.
MAX_TEMPLATE = 256 << 10
# An answer that no template has in its own words.
PROBE = "xyzzy"


@dataclass(frozen=True, eq=False)
class Tokens:
    """One sequence.

    Attributes:
        ids: (L,) int32.
        weights: (L,) float32; see above.
        ended: the last target is a token that ends a turn or a text.
        cut: tokens beyond the longest length were cut off.
        skipped: answers that are only read, since the template rewrites them.
    """

    ids: np.ndarray
    weights: np.ndarray
    ended: bool = True
    cut: bool = False
    skipped: int = 0

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return int((self.weights > 0).sum())

    def digest(self) -> bytes:
        """sha256 over ids and weights."""
        return hashlib.sha256(self.ids.tobytes() + self.weights.tobytes()).digest()


@dataclass(frozen=True)
class Frame:
    """What a template puts around an answer: words before it, words behind it, and whether those end the turn."""

    lead: str = ""
    tail: str = ""
    ends: bool = False


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
        own = self._ids(self.frame.tail).tolist()[-1:] if self.frame.ends else []
        return tuple(dict.fromkeys([*self.ends, *own]))

    @cached_property
    def lead(self) -> str:
        """What the template puts in front of an answer, as it stands in a generated text."""
        return self.tokenizer.decode(self._ids(self.frame.lead).tolist(), skip_special_tokens=True).strip()

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
        except Exception as error:
            # A template raises what it likes.
            reason = str(error).split("\n")[0][:160].rstrip(".") or type(error).__name__
            raise BaseModelError("llm.template_refused", path=self.path, reason=reason) from error

    def prompt(self, turns: Sequence[Message]) -> np.ndarray:
        """Return the ids after which the answer begins."""
        if self.has_template:
            return self._ids(self.text(turns, ask=True))
        return np.concatenate([self._start, self._ids(_plain(turns))])

    def answer(self, text: str) -> np.ndarray:
        """Return the ids of an answer as it is trained, with the token that ends it."""
        ids = self._ids(self.frame.lead + text + self.frame.tail)
        return ids if self.frame.tail else np.concatenate([ids, self._end])

    def sequence(self, row: TextRow, answer: Sequence[Message], train_on: str) -> list[Tokens]:
        """Return a row's tokens.

        Raises:
            BaseModelError: the row needs a chat template, and there is none.
            DataError: the template refuses the row.
        """
        try:
            return [self._tokens(row, answer, train_on)]
        except BaseModelError as error:
            if error.code != "llm.template_refused":
                raise
            raise DataError("llm.row_refused", row=row.id, path=self.path, reason=error.params["reason"]) from error

    def _tokens(self, row: TextRow, answer: Sequence[Message], train_on: str) -> Tokens:
        if row.kind == "text":
            ids = np.concatenate([self._start, self._ids(answer[0].content), self._end])
            weights = np.ones(len(ids), np.float32)
            weights[:1] = 0
            return Tokens(ids, weights, ended=bool(self.ends))
        if row.kind == "completion" and not self.has_template:
            return self._completion(row.prompt, answer, train_on)
        learned = train_on if row.kind in ("chat", "completion") else "completions"
        return self._chat([*row.prompt, *answer], learned, len(row.prompt))

    def _completion(self, prompt: Sequence[Message], answer: Sequence[Message], train_on: str) -> Tokens:
        before, after = self.prompt(prompt), self.answer("".join(turn.content for turn in answer))
        weights = np.concatenate([np.full(len(before), train_on == "all"), np.ones(len(after))]).astype(np.float32)
        weights[0] = 0
        return Tokens(np.concatenate([before, after]), weights, ended=bool(self.ends))

    def _chat(self, turns: Sequence[Message], train_on: str, prompt: int) -> Tokens:
        """Render the whole and find the assistant's spans; in a row with an answer only turns behind the prompt."""
        whole = self.text(turns, ask=False)
        everything = train_on == "all"
        spans = [(0, len(whole), 1.0)] if everything else []
        skipped, ended = 0, True
        # A chat row has its turns in `prompt`; rows of other kinds learn what comes behind it.
        first = 0 if prompt == len(turns) else prompt
        speaking = [i for i, turn in enumerate(turns) if turn.role == "assistant" and i >= first]
        for number in speaking[-1:] if train_on == "last" else speaking:
            span, weight = self._span(turns, number, whole), turns[number].weight
            if span is None:
                skipped += not everything and weight != 0
                continue
            ended = span[2]
            if not everything or weight is not None:
                spans.append((*span[:2], 1.0 if weight is None else weight))
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        weights = np.zeros(len(encoded["input_ids"]), np.float32)
        places = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        for start, end, weight in spans:
            inside = (places[:, 0] >= start) & (places[:, 1] <= end) & (places[:, 0] < places[:, 1])
            weights[inside] = weight
        weights[:1] = 0
        return Tokens(np.asarray(encoded["input_ids"], np.int32), weights, ended=ended, skipped=skipped)

    def _span(self, turns: Sequence[Message], number: int, whole: str) -> tuple[int, int, bool] | None:
        """Return (start, end, ended) of a turn in the whole text; None where the template has other words there."""
        try:
            before = self._asking(turns[:number])
            upto = self.text(turns[: number + 1], ask=False)
        except BaseModelError:
            return None
        start, content = len(before), turns[number].content.strip()
        if not whole.startswith(before):
            return None
        if upto.startswith(before) and whole.startswith(upto):
            # A word of the answer itself does not end it, where the template leaves the answer as it is.
            body = upto.find(content, start)
            end = self._first_end(upto, body + len(content) if body >= 0 else start)
            return (start, end[1], True) if end else (start, len(upto), False)
        # Some templates put more around the last answer than around those before it, such as a place for thoughts.
        end = self._first_end(whole, start)
        is_whole = end is not None and whole[start : end[0]].strip() == content
        return (start, end[1], True) if end is not None and is_whole else None

    def _asking(self, turns: Sequence[Message]) -> str:
        """Render what stands before an answer; nothing at all cannot be rendered, but what asks for an answer can."""
        if turns:
            return self.text(turns, ask=True)
        one = [Message("user", "a")]
        return self.text(one, ask=True).removeprefix(self.text(one, ask=False))

    def _first_end(self, text: str, start: int) -> tuple[int, int] | None:
        """Return where the first word that ends a turn begins and ends, from `start` on."""
        found = [(place, place + len(word)) for word in self._end_words if (place := text.find(word, start)) >= 0]
        return min(found) if found else None

    def _ids(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    @cached_property
    def _start(self) -> np.ndarray:
        """The tokens that this tokenizer puts in front of every text by itself, such as <s>."""
        both = self.tokenizer("a")["input_ids"]
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        count = next((i for i in range(len(both)) if both[i : i + len(bare)] == bare), 0)
        return np.asarray(both[:count], np.int32)

    @property
    def _end(self) -> np.ndarray:
        """What ends a text, and an answer of a template that ends none."""
        return np.asarray(self.ends[:1], np.int32)

    @cached_property
    def frame(self) -> Frame:
        """What stands around an answer, up to the token that ends the turn."""
        if not self.has_template:
            return Frame()
        turns = [Message("user", "a"), Message("assistant", PROBE)]
        before, upto = self.text(turns[:1], ask=True), self.text(turns, ask=False)
        if not upto.startswith(before) or PROBE not in upto[len(before) :]:
            return Frame()
        lead, _, tail = upto[len(before) :].partition(PROBE)
        end = self._first_end(tail, 0)
        return Frame(lead, tail[: end[1]], True) if end else Frame(lead, tail)


def pieces(tokens: Tokens, longest: int, *, split: bool) -> list[Tokens]:
    """Make a sequence fit: a text is split into pieces, anything else loses its end.

    A piece begins with the last token of the one before it, so that each token is learned once.
    """
    total = len(tokens.ids)
    if total <= longest:
        return [tokens]
    if not split:
        return [replace(tokens, ids=tokens.ids[:longest], weights=tokens.weights[:longest], ended=False, cut=True)]
    made = []
    for start in range(0, total - 1, longest - 1):
        weights = tokens.weights[start : start + longest].copy()
        weights[0] = 0
        last = start + longest >= total
        made.append(Tokens(tokens.ids[start : start + longest], weights, ended=tokens.ended and last))
    return made


def _plain(turns: Sequence[Message]) -> str:
    """Turns of a base without a chat template: their words one after the other, as they are."""
    return "\n\n".join(turn.content for turn in turns)
