"""`lora-scripts draft`: write a reply to each message under its label, given or predicted."""

from __future__ import annotations

import argparse

from lora_scripts.cli import _message_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    _message_arguments.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Classify the rows without a label, draft all, write."""
    from lora_scripts import answering

    console, speaker, rows = _message_arguments.open_all(arguments, classifies=False)
    bare = [row for row in rows if not row.get("label")]
    said = answering.classify(speaker, bare, lambda done, total: console.say("llm.classifying", done=done, total=total))
    predicted = iter(said)
    made = []
    for number, row in enumerate(rows, 1):
        digest = _message_arguments.adapter_of(row, speaker.adapters).sha256
        own = {"id": row.get("id", f"row-{number:06d}"), **row, "adapter_sha256": digest}
        if not row.get("label"):
            label, confidence, abstained = next(predicted)
            own |= {"label": label, "confidence": confidence, "abstained": abstained}
        made.append(own)
    labels = [row["label"] for row in made]
    replies = answering.draft(
        speaker, rows, labels, lambda done, total: console.say("llm.drafting", done=done, total=total)
    )
    made = [{**row, "reply": reply} for row, reply in zip(made, replies, strict=True)]
    answering.write_rows(arguments.output, made)
    console.say("llm.drafted", rows=len(made), path=arguments.output)
    return 0
