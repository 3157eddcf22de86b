"""Lists of turns, as OpenAI writes them (`role`, `content`) or as ShareGPT does (`from`, `value`)."""

from __future__ import annotations

from collections.abc import Sequence

from lora_scripts.data.record import Message, TextRow
from lora_scripts.data.texts import fields
from lora_scripts.data.texts.fields import Raw, Unfit, Wrong

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing"), "assistant"),
    "system": "system",
    "tool": "tool",
}
_TOOL_FIELDS = ("tools", "functions", "tool_calls", "function_call")
_TURN_FIELDS = {"role", "content", "from", "value", "weight", *_TOOL_FIELDS}


def turns(value: object, where: str) -> tuple[Message, ...]:
    """Return a list of turns.

    Args:
        where: the list's name in a sentence.

    Raises:
        Unfit: it is no list of turns, or a turn is not text alone.
        Wrong: a turn has a role that is not known.
    """
    if value is None:
        raise Unfit("text.missing", field=where)
    if not isinstance(value, list | tuple):
        raise Unfit("text.not_turns", field=where, value=fields.shown(value))
    if not value:
        raise Unfit("text.blank", field=where)
    return tuple(_turn(turn, f"{where}[{number}]") for number, turn in enumerate(value))


def _turn(raw: object, where: str) -> Message:
    if not isinstance(raw, dict):
        raise Unfit("text.not_turns", field=where, value=fields.shown(raw))
    refuse_tools(raw, where)
    by_name = raw.get("role") is None and raw.get("from") is not None
    field, known = ("from", SPEAKERS) if by_name else ("role", ROLES)
    role = fields.text(raw, field, f"{where}.{field}").strip().lower()
    if role not in known:
        raise Wrong("text.role", field=f"{where}.{field}", value=fields.shown(raw[field]), allowed=", ".join(known))
    content = _content(raw, "value" if by_name else "content", where)
    if not content.strip() and known[role] != "assistant":
        raise Unfit("text.blank", field=where)
    weight = fields.weight(raw, f"{where}.weight")
    if weight and known[role] != "assistant":
        raise Unfit("text.weight_role", field=f"{where}.weight", role=role)
    return Message(known[role], content, weight)


def _content(raw: Raw, field: str, where: str) -> str:
    """Return a turn's text, the parts of a list joined by line ends."""
    parts = raw.get(field)
    if not isinstance(parts, list | tuple):
        return fields.text(raw, field, f"{where}.{field}")
    texts = []
    for number, part in enumerate(parts):
        name = f"{where}.{field}[{number}]"
        if not isinstance(part, dict):
            raise Unfit("text.not_text", field=name, value=fields.shown(part))
        if part.get("type") != "text":
            raise Unfit("text.part", field=name, value=fields.shown(part.get("type")))
        texts.append(fields.text(part, "text", f"{name}.text"))
    return "\n".join(texts)


def refuse_tools(raw: Raw, where: str = "") -> None:
    """Refuse a row or turn that defines or calls tools: what cannot be rendered yet is not left out in silence.

    Raises:
        Unfit: it does.
    """
    for field in _TOOL_FIELDS:
        if not fields.is_absent(raw, field):
            raise Unfit("text.tools", field=f"{where}.{field}".lstrip("."))


def answers(messages: Sequence[Message], where: str) -> None:
    """Make sure that somebody answers.

    Raises:
        Unfit: no assistant's turn has words in it.
    """
    if not any(message.role == "assistant" and message.content.strip() for message in messages):
        raise Unfit("text.empty_answer", field=where)


def _chat(raw: Raw, id: str, field: str) -> list[TextRow]:
    refuse_tools(raw)
    found = turns(raw.get(field), field)
    answers(found, field)
    return [TextRow(id, "chat", found)]


def convert_messages(raw: Raw, id: str) -> list[TextRow]:
    """Make a chat of OpenAI's `messages`."""
    return _chat(raw, id, "messages")


def convert_sharegpt(raw: Raw, id: str) -> list[TextRow]:
    """Make a chat of ShareGPT's `conversations`, with `system` in front where the row has one."""
    (row,) = _chat(raw, id, "conversations")
    if not (system := fields.optional(raw, "system")):
        return [row]
    if row.prompt[0].role == "system":
        raise Unfit("text.two_systems", field="conversations[0]")
    return [TextRow(id, "chat", (Message("system", system), *row.prompt))]


def unused_fields(value: object) -> set[str]:
    """Return the fields of a list's turns that are not read, such as a name."""
    turns = value if isinstance(value, list | tuple) else ()
    return {
        field
        for turn in turns
        if isinstance(turn, dict)
        for field in turn.keys() - _TURN_FIELDS
        if turn[field] is not None
    }
