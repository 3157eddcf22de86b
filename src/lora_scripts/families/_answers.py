"""Answers of a language model: generated in batches, laid out beside the base's, and rows with their targets marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lora_scripts import messages
from lora_scripts.data.record import Message

BATCH = 16
OPEN, CLOSE = "\u27e6", "\u27e7"


@dataclass(frozen=True)
class Answer:
    """What was generated; `stopped` says that it ended by itself."""

    text: str
    stopped: bool


def generate(family: Any, prompts: Sequence[Sequence[Message]], new_tokens: int) -> list[Answer]:
    """Answer each prompt with the likeliest token each time, in batches of like length."""
    import torch
    from transformers import GenerationConfig

    renderer, device = family.renderer, family.placement.device
    rows = [renderer.prompt(prompt) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    stops = list(renderer.stops)
    pad = stops[0] if stops else 0
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=stops or None, pad_token_id=pad)
    answers: dict[int, Answer] = {}
    modes = {module: module.training for module in family.model.modules()}
    family.model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), family.plain_attention():
        for start in range(0, len(order), BATCH):
            chunk = order[start : start + BATCH]
            widest = max(len(rows[i]) for i in chunk)
            ids = torch.full((len(chunk), widest), pad)
            mask = torch.zeros(len(chunk), widest, dtype=torch.long)
            for line, i in enumerate(chunk):
                ids[line, widest - len(rows[i]) :] = torch.from_numpy(rows[i].astype(np.int64))
                mask[line, widest - len(rows[i]) :] = 1
            made = family.model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=config)
            for line, i in enumerate(chunk):
                answers[i] = _cut(renderer, made[line, widest:].tolist(), stops)
    for module, mode in modes.items():
        module.training = mode
    return [answers[i] for i in range(len(rows))]


def _cut(renderer: Any, ids: Sequence[int], stops: Sequence[int]) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    text = renderer.tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
    return Answer(text.removeprefix(renderer.lead).strip(), end is not None)


def marked(renderer: Any, example: Any) -> str:
    """Return a row as the model reads it, with what is learned in brackets; two sequences stand under each other."""
    lines = [f"{example.id} ({example.row.kind})"]
    for tokens in example.sequences:
        parts, start = [], 0
        learned = tokens.weights > 0
        edges = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(learned)]
        for start, end in pairwise(edges):
            text = renderer.tokenizer.decode(tokens.ids[start:end].tolist())
            parts.append(f"{OPEN}{text}{CLOSE}" if learned[start] else text)
        lines.append("".join(parts).rstrip("\n"))
    return "\n".join(lines)


def lay_out(before: Sequence[str], after: Sequence[str], prompts: Sequence[Any], stem: Path) -> Path:
    """Write prompts with the base's answer and the LoRA's under each."""
    english = messages.catalogue("en")
    lines = []
    for prompt, first, second in zip(prompts, before, after, strict=True):
        lines += [f"[{turn.role}] {turn.content}" for turn in prompt]
        lines += [f"  {english['train.label_base']}: {first}", f"  {english['train.label_lora']}: {second}", ""]
    path = stem.with_name(f"{stem.name}.txt")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
