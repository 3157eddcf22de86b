"""`lora-scripts classify`: sort messages into the labels that an adapter was trained on, with honest confidence."""

from __future__ import annotations

import argparse

from lora_scripts.cli import _message_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    _message_arguments.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Classify and write; where the input says the right label, it is kept as `expected` and compared."""
    from lora_scripts import answering
    from lora_scripts.train.listeners.report import confusion

    console, speaker, rows = _message_arguments.open_all(arguments, classifies=True)
    tell = lambda done, total: console.say("llm.classifying", done=done, total=total)  # noqa: E731
    found = answering.classify(speaker, rows, tell)
    made = []
    for row, (label, confidence, abstained) in zip(rows, found, strict=True):
        expected = {"expected": row["label"]} if row.get("label") else {}
        digest = _message_arguments.adapter_of(row, speaker.adapters).sha256
        said = {"label": label, "confidence": confidence, "abstained": abstained, "adapter_sha256": digest}
        made.append({**row, **expected, **said})
    answering.write_rows(arguments.output, made)
    told = answering.compare(rows, found)
    console.say("llm.classified", rows=told.rows, abstained=told.abstained, path=arguments.output)
    if told.known:
        console.say("llm.compared", rows=told.known, right=told.right, share=f"{told.right / told.known:.3f}")
        for line in confusion({"labels": told.labels, "confusion": told.confusion}):
            console.line(line)
    return 0
