"""A prompt and what follows it: Alpaca, prompt/completion and its kin, raw text, preference pairs, thumbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_scripts.data.record import Message, TextRow
from lora_scripts.data.texts import conversations, fields
from lora_scripts.data.texts.fields import Raw, Unfit

PROMPTS = ("prompt", "question", "input")
COMPLETIONS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("input", "output"))
Turns = tuple[Message, ...]


def convert_alpaca(raw: Raw, id: str) -> list[TextRow]:
    """Make one prompt of instruction, input and history; the answer is `output`."""
    parts = [part for part in (fields.optional(raw, "instruction"), fields.optional(raw, "input")) if part]
    if not parts:
        raise Unfit("text.blank", field="instruction")
    prompt = (*_system(raw), *_history(raw), Message("user", "\n\n".join(parts)))
    return [TextRow(id, "completion", prompt, (Message("assistant", fields.answer(raw, "output")),))]


def _system(raw: Raw) -> Turns:
    system = fields.optional(raw, "system")
    return (Message("system", system),) if system else ()


def _history(raw: Raw) -> Turns:
    """Return earlier turns, written as [[question, answer], ...]; they are read, not learned."""
    if fields.is_absent(raw, "history"):
        return ()
    history = raw["history"]
    found: list[Message] = []
    for number, pair in enumerate(history if isinstance(history, list | tuple) else [history]):
        where = f"history[{number}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unfit("text.bad_history", field=where, value=fields.shown(pair))
        question, answer = ({"text": value} for value in pair)
        found += Message("user", fields.filled(question, "text", where)), _read(fields.text(answer, "text", where))
    return tuple(found)


def _read(answer: str) -> Message:
    """Return an assistant's turn that stands in a prompt: it is not learned."""
    return Message("assistant", answer, 0.0)


def convert_completion(raw: Raw, id: str) -> list[TextRow]:
    """Make a prompt and its answer, or a chat where either is a list of turns."""
    prompt_field, answer_field = next(names for names in COMPLETIONS if raw.keys() >= {*names})
    prompt, answer = _prompt(raw, prompt_field), _answer(raw, answer_field)
    if isinstance(raw[prompt_field], str) and isinstance(raw[answer_field], str):
        return [TextRow(id, "completion", prompt, answer)]
    # The whole is a chat, of which only what follows the prompt is learned.
    read = (replace(turn, weight=0.0) if turn.role == "assistant" and turn.weight is None else turn for turn in prompt)
    return [TextRow(id, "chat", (*read, *answer))]


def _prompt(raw: Raw, field: str) -> Turns:
    """Return what is asked: a text, or a list of turns, behind the row's `system` where there is one."""
    conversations.refuse_tools(raw)
    value = raw.get(field)
    if isinstance(value, list | tuple):
        found = conversations.turns(value, field)
        if found[0].role == "system" and _system(raw):
            raise Unfit("text.two_systems", field=f"{field}[0]")
        return (*_system(raw), *found)
    return (*_system(raw), Message("user", fields.filled(raw, field)))


def _answer(raw: Raw, field: str) -> Turns:
    """Return what is answered: a text, or a list of turns with an assistant's among them."""
    value = raw.get(field)
    if isinstance(value, list | tuple):
        found = conversations.turns(value, field)
        conversations.answers(found, field)
        return found
    return (Message("assistant", fields.answer(raw, field)),)


def convert_text(raw: Raw, id: str) -> list[TextRow]:
    """Make a row of which everything is learned."""
    return [TextRow(id, "text", answer=(Message("assistant", fields.filled(raw, "text")),))]


def convert_pair(raw: Raw, id: str) -> list[TextRow]:
    """Make a pair of `chosen` and `rejected`: answers to a prompt, or whole conversations that begin alike."""
    conversations.refuse_tools(raw)
    chosen, rejected = _answer(raw, "chosen"), _answer(raw, "rejected")
    asked = next((field for field in PROMPTS if not fields.is_absent(raw, field)), "")
    prompt = _prompt(raw, asked) if asked else _system(raw)
    if chosen[0].role == "assistant" and rejected[0].role == "assistant":
        return _pair(id, prompt, chosen, rejected)
    # What both begin with is the prompt; answers begin with an assistant's turn, never with the end of one.
    same = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if same is None:
        raise Unfit("text.pair_equal") if chosen == rejected else Unfit("text.pair_start")
    begun = chosen[:same]
    if asked and prompt[-1].content.strip() not in [turn.content.strip() for turn in begun]:
        raise Unfit("text.pair_prompt", field=asked)
    if prompt and prompt[0].role == "system" and begun and begun[0].role != "system":
        begun = (prompt[0], *begun)
    return _pair(id, begun, chosen[same:], rejected[same:])


def convert_preferred(raw: Raw, id: str) -> list[TextRow]:
    """Make a pair of OpenAI's `input`, `preferred_output` and `non_preferred_output`."""
    asked = raw.get("input")
    if not isinstance(asked, dict):
        raise Unfit("text.bad_input", value=fields.shown(asked))
    conversations.refuse_tools(asked, "input")
    prompt = conversations.turns(asked.get("messages"), "input.messages")
    return _pair(id, prompt, _answer(raw, "preferred_output"), _answer(raw, "non_preferred_output"))


def _pair(id: str, prompt: Turns, chosen: Turns, rejected: Turns) -> list[TextRow]:
    if not any(turn.role == "user" for turn in prompt):
        raise Unfit("text.missing", field="prompt")
    for answer in (chosen, rejected):
        if answer[0].role != "assistant":
            raise Unfit("text.pair_start")
        conversations.answers(answer, "rejected" if answer is rejected else "chosen")
    if _words(chosen) == _words(rejected):
        raise Unfit("text.pair_equal")
    return [TextRow(id, "pair", prompt, chosen, rejected)]


def _words(answer: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in answer]


def convert_thumb(raw: Raw, id: str) -> list[TextRow]:
    """Make a row of an answer that was liked or not."""
    prompt, answer = _prompt(raw, "prompt"), _answer(raw, "completion")
    if answer[0].role != "assistant":
        raise Unfit("text.pair_start")
    return [TextRow(id, "thumb", prompt, answer, liked=fields.liked(raw, "label"))]
