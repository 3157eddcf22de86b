"""Rows as examples: what is cut, split or dropped is told, and tokens come back from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lora_scripts.data.cache import Cache
from lora_scripts.data.record import Message, TextRow
from lora_scripts.errors import ConfigError, DataError
from lora_scripts.families import _answers
from lora_scripts.families._chat import pieces
from lora_scripts.families._texts import Limits, TextExample, tokenise
from tests.families.chats import ASK, CHAT, DONE, HELLO, HI, THINKING, chat, completion, notes_of, renderer, tokens_of


def examples_of(rows: Sequence[TextRow], longest: int | None) -> list[TextExample]:
    return tokenise(rows, renderer(), Limits(longest, "completions", 512), None, "")[0]


def test_a_row_that_is_too_long_loses_its_end_and_is_counted():
    row, longest = completion("a question", "x" * 100), 60
    (example,) = examples_of([row], longest)
    (tokens,) = example.sequences
    uncut = tokens_of(renderer(), row)
    assert np.array_equal(tokens.ids, uncut.ids[:60]) and np.array_equal(tokens.weights, uncut.weights[:60])
    assert tokens.cut and not tokens.ended
    notes = notes_of([row, completion("b", "c")], renderer(), longest)
    assert notes["llm.cut"] == {"count": 1, "longest": 60} and "llm.endless" not in notes


@pytest.mark.parametrize("length", [59, 60, 61, 119, 178, 179, 500])
def test_a_long_text_is_learned_in_pieces_each_token_once(length: int):
    text = "".join(chr(97 + i % 26) for i in range(length))
    made, longest = renderer(), 60
    tokens = tokens_of(made, TextRow("t", "text", answer=(Message("assistant", text),)))
    parts = pieces(tokens, longest, split=True)
    assert all(len(part.ids) <= longest and part.weights[0] == 0 for part in parts)
    targets = np.concatenate([part.ids[part.weights > 0] for part in parts])
    assert np.array_equal(targets, tokens.ids[1:])
    assert [part.ended for part in parts] == [False] * (len(parts) - 1) + [True]


def test_pieces_are_examples_with_names_of_their_own_and_are_counted():
    row = TextRow("0/a.txt:1", "text", answer=(Message("assistant", "y" * 150),))
    examples = examples_of([row], 60)
    assert [example.id for example in examples] == ["0/a.txt:1", "0/a.txt:1+1", "0/a.txt:1+2"]
    assert sum(example.mass for example in examples) == 150
    assert notes_of([row], renderer(), 60)["llm.split"] == {"count": 1, "longest": 60}


def test_rows_without_targets_are_dropped_and_counted():
    rows = [completion("p" * 80, "answer"), completion("short", "answer")]
    assert [example.row.prompt[0].content for example in examples_of(rows, 60)] == ["short"]
    notes = notes_of(rows, renderer(), 60)
    assert notes["llm.untargeted"] == {"count": 1, "names": "0/rows.jsonl:1"}
    assert notes["llm.tokens"]["rows"] == 1


def test_a_pair_goes_when_one_of_its_answers_has_no_targets():
    row = TextRow("p", "pair", (ASK,), (DONE,), (Message("assistant", "no"),))
    assert len(examples_of([row], None)) == 1
    tokens = tokens_of(renderer(), row)
    with pytest.raises(DataError, match="1 rows"):
        examples_of([row], int(np.argmax(tokens.weights > 0)))


def test_no_targets_at_all_is_an_error():
    with pytest.raises(DataError) as caught:
        notes_of([completion("p" * 80, "a"), chat(Message("user", "u" * 90), HI)], renderer(), 60)
    sentence = str(caught.value)
    assert caught.value.exit_code == 3 and "2 rows" in sentence and "max_length 60" in sentence
    silent = chat(HELLO, Message("assistant", "hi", 0.0))
    with pytest.raises(DataError):
        notes_of([silent], renderer())


def test_the_longest_length_is_what_the_rows_need_within_the_base():
    rows = [completion("p" * 100, "a" * 100)]
    assert tokenise(rows, renderer(), Limits(None, "completions", 512), None, "")[2] == 256
    assert tokenise(rows, renderer(), Limits(None, "completions", 200), None, "")[2] == 200
    with pytest.raises(ConfigError) as caught:
        tokenise(rows, renderer(), Limits(600, "completions", 512), None, "")
    assert "600" in str(caught.value) and "512" in str(caught.value)


# The cache


def test_tokens_come_from_the_cache_and_only_for_the_same_rows_and_settings(tmp_path: Path):
    cache_folder = Cache(tmp_path)
    thinking = renderer(THINKING)
    thoughtful = Message("assistant", "<think>who?</think>hi")
    rows = [chat(HELLO, thoughtful, ASK, DONE), TextRow("p", "pair", (ASK,), (DONE,), (HI,)), completion("a", "b")]

    def made(rows: Sequence[TextRow], settings: str = "one", train_on: str = "completions"):
        return tokenise(rows, thinking, Limits(None, train_on, 512), cache_folder, settings)

    def entries() -> int:
        return len(list(tmp_path.rglob("*.safetensors")))

    first, again = made(rows), made(rows)
    assert entries() == 1
    assert [example.fingerprint for example in first[0]] == [example.fingerprint for example in again[0]]
    # What was counted is counted again.
    assert first[1] == again[1] and any(note.code == "llm.rewritten" for note in again[1])
    for number, changed in enumerate(((rows[:2],), (rows, "two"), (rows, "one", "last")), start=2):
        assert made(*changed)[0] and entries() == number
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    assert [example.fingerprint for example in made(rows)[0]] == [example.fingerprint for example in first[0]]


def test_marked_rows_show_what_is_learned():
    (example,) = examples_of([chat(*CHAT[1:])], None)
    shown = _answers.marked(renderer(), example)
    assert f"{_answers.OPEN}hi, what is it?<|im_end|>{_answers.CLOSE}" in shown
    assert f"{_answers.OPEN}It comes today.<|im_end|>{_answers.CLOSE}" in shown
    assert shown.count(_answers.OPEN) == 2
