"""Rows, chat templates as models have them, and what of a row is learned, as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_scripts import messages
from lora_scripts.data.record import Message, TextRow
from lora_scripts.families._chat import Renderer, Tokens
from lora_scripts.families._texts import Limits, tokenise
from tests import tiny_text

SYSTEM = Message("system", "be kind")
HELLO, HI = Message("user", "hello there"), Message("assistant", "hi, what is it?")
ASK, DONE = Message("user", "where is my parcel?"), Message("assistant", "It comes today.")
CHAT = (SYSTEM, HELLO, HI, ASK, DONE)

# As Qwen3's: thoughts stay in the last answer only, which has a place for them even where there are none.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% set parts = m['content'].split('</think>') %}"
    "{% if loop.last %}<think>\n{{ parts[0].replace('<think>', '').strip() if parts|length > 1 else '' }}\n</think>\n\n"
    "{% endif %}{{ parts[-1].strip() }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 2's: a space before and after the answer, and the end of a text as the end of a turn.
BRACKETS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>[INST] {{ m['content'].strip() }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'].strip() }} <|im_end|>{% endif %}{% endfor %}"
)
# As DeepSeek's distilled ones: it asks with an open thought, which its answers do not begin with.
OPEN_THOUGHT = tiny_text.TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
ENDLESS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('A user begins.') }}{% endif %}" + tiny_text.TEMPLATE


def renderer(template: str | None = tiny_text.TEMPLATE, words: Any = None, **settings: Any) -> Renderer:
    words = words or tiny_text.tokenizer()
    words.chat_template = template
    return Renderer(words, Path("base"), **settings)


def chat(*turns: Message) -> TextRow:
    return TextRow("0/rows.jsonl:1", "chat", turns)


def completion(prompt: str, answer: str) -> TextRow:
    return TextRow("0/rows.jsonl:1", "completion", (Message("user", prompt),), (Message("assistant", answer),))


def tokens_of(made: Renderer, row: TextRow, train_on: str = "completions") -> Tokens:
    (tokens,) = made.sequence(row, row.answer, train_on)
    return tokens


def learned(made: Renderer, tokens: Tokens) -> list[str]:
    """What is learned, as texts: one for each run of tokens with a weight."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], tokens.weights > 0, [0]]).astype(int))).reshape(-1, 2)
    return [made.tokenizer.decode(tokens.ids[start:end].tolist()) for start, end in edges]


def whole(made: Renderer, tokens: Tokens) -> str:
    return made.tokenizer.decode(tokens.ids.tolist())


def notes_of(rows: Sequence[TextRow], made: Renderer, longest: int | None = None, context: int = 512) -> dict[str, Any]:
    _, notes, _ = tokenise(rows, made, Limits(longest, "completions", context), None, "")
    assert all(messages.text(note.code, **note.params) for note in notes)
    return {note.code: dict(note.params) for note in notes}
