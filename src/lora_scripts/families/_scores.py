"""The task's own numbers on held-out rows, and the calibration that `classify` uses.

A label is scored by the log-probability of its whole text with the token that ends it, given the prompt; all labels
of a prompt are scored in one forward pass, behind one copy of the prompt, without seeing each other.

Shapes: R = rows, K = labels.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_scripts.families import _answers, _rows
from lora_scripts.families import _head as heads
from lora_scripts.files import write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
TASK_FILE = "task.json"
STREAM_TOKENS = 2048
# Answers that name a label are short; a few tokens more show whether the model stops.
SPARE_TOKENS = 3
# `classify` abstains where it would be right less often than this.
WANTED_PRECISION = 0.9
BINS = 10


def label_scores(family: Any, prompts: Sequence[NDArray], labels: Sequence[str]) -> NDArray:
    """(R, K) log p(label and end of turn | prompt)."""
    import torch

    choices = [family.renderer.answer(label) for label in labels]
    width = sum(map(len, choices))
    scores = np.zeros((len(prompts), len(labels)))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with torch.no_grad():
        for chunk in _chunks(order, [len(prompt) + width for prompt in prompts]):
            if family.packs:
                scores[chunk] = _scored(family, [prompts[i] for i in chunk], choices)
            else:
                for i in chunk:
                    scores[i] = _scored_apart(family, prompts[i], choices)
    return scores


def _chunks(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    made: list[list[int]] = []
    total = STREAM_TOKENS
    for i in order:
        if total + lengths[i] > STREAM_TOKENS:
            made.append([])
            total = 0
        made[-1].append(i)
        total += lengths[i]
    return made


def _scored(family: Any, prompts: Sequence[NDArray], choices: Sequence[NDArray]) -> NDArray:
    """(R, K): each row is its prompt and all choices, each of which sees the prompt and itself."""
    import torch

    ids, positions, lengths, masks, at, wanted, cells = [], [], [], [], [], [], []
    sizes, start = [len(choice) for choice in choices], 0
    for row, prompt in enumerate(prompts):
        ids += [prompt, *choices]
        positions += [np.arange(len(prompt)), *(np.arange(size) + len(prompt) for size in sizes)]
        lengths.append(len(prompt) + sum(sizes))
        masks.append(_rows.choice_mask(len(prompt), sizes))
        last, place = start + len(prompt) - 1, start + len(prompt)
        for column, choice in enumerate(choices):
            at += [last, *range(place, place + len(choice) - 1)]
            wanted += choice.tolist()
            cells += [row * len(choices) + column] * len(choice)
            place += len(choice)
        start += lengths[-1]
    hidden = family.hidden(
        torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        torch.from_numpy(np.concatenate(positions)),
        lengths,
        masks,
    )
    places, targets = torch.tensor(at, device=hidden.device), torch.tensor(wanted, device=hidden.device)
    found = heads.token_logprobs(hidden[places], targets, family.head)
    sums = torch.zeros(len(prompts) * len(choices), dtype=torch.float64)
    sums.index_add_(0, torch.tensor(cells), found.double().cpu())
    return sums.view(len(prompts), len(choices)).numpy()


def _scored_apart(family: Any, prompt: NDArray, choices: Sequence[NDArray]) -> NDArray:
    """(K,): the prompt repeated for each choice, for models that may not be given streams."""
    import torch

    rows = [np.concatenate([prompt, choice]) for choice in choices]
    lengths = [len(row) for row in rows]
    starts = np.cumsum([0, *lengths])[:-1]
    at = np.concatenate([s + len(prompt) - 1 + np.arange(len(c)) for s, c in zip(starts, choices, strict=True)])
    hidden = family.hidden(
        torch.from_numpy(np.concatenate(rows).astype(np.int64)),
        torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        lengths,
    )
    wanted = torch.from_numpy(np.concatenate(choices).astype(np.int64)).to(hidden.device)
    found = heads.token_logprobs(hidden[torch.from_numpy(at).to(hidden.device)], wanted, family.head)
    cells = torch.from_numpy(np.repeat(np.arange(len(choices)), [len(choice) for choice in choices]))
    return torch.zeros(len(choices), dtype=torch.float64).index_add_(0, cells, found.double().cpu()).numpy()


def measure(family: Any, examples: Sequence[Any], labels: Sequence[str], answers: int) -> dict[str, Any]:
    """Return numbers by name under "logs", the whole under "details"; nothing where no row names a label.

    Under "losses" stands what the objective `sft` would find for a row whose answer is its label: the label's score.
    """
    sorting = [example for example in examples if example.row.label and example.row.label in labels]
    rows = [example.row for example in sorting]
    if not rows:
        return {}
    prompts = [family.renderer.prompt(row.prompt) for row in rows]
    scores = label_scores(family, prompts, labels)
    truth = np.array([labels.index(row.label) for row in rows])
    said = scores.argmax(1)
    logs = {"label_accuracy": float((said == truth).mean()), "macro_f1": macro_f1(truth, said, len(labels))}
    tongues: dict[str, list[bool]] = defaultdict(list)
    for row, right in zip(rows, said == truth, strict=True):
        tongues[row.language].append(bool(right))
    if len(tongues) > 1:
        logs |= {f"label_accuracy_{name or 'other'}": sum(v) / len(v) for name, v in sorted(tongues.items())}
    if answers:
        longest = max(len(family.renderer.answer(label)) for label in labels) + SPARE_TOKENS
        every = max(1, len(rows) // answers)
        made = _answers.generate(family, [row.prompt for row in rows[::every][:answers]], longest)
        logs["format_validity"] = sum(answer.text in labels for answer in made) / len(made)
        logs["stop_rate"] = sum(answer.stopped for answer in made) / len(made)
    table = np.zeros((len(labels), len(labels)), int)
    np.add.at(table, (truth, said), 1)
    details = {
        "labels": list(labels),
        "confusion": table.tolist(),
        "truth": truth.tolist(),
        "languages": [row.language for row in rows],
        "scores": np.round(scores, 4).tolist(),
    }
    losses = {
        example.id: (-example.weight * float(scores[i, truth[i]]), example.mass)
        for i, example in enumerate(sorting)
        if example.mass == example.weight * len(family.renderer.answer(example.row.label))
    }
    return {"logs": logs, "details": details, "losses": losses}


def macro_f1(truth: NDArray, said: NDArray, count: int) -> float:
    """Mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    found = []
    for label in range(count):
        hits = int(((truth == label) & (said == label)).sum())
        wrong = int((truth == label).sum() + (said == label).sum()) - 2 * hits
        if hits or wrong:
            found.append(2 * hits / (2 * hits + wrong))
    return sum(found) / len(found) if found else 0.0


def temperature(scores: NDArray, truth: NDArray) -> float:
    """Return the temperature that makes held-out rows likeliest (arXiv:1706.04599, section 4.2), from 0.05 to 20."""
    low, high = math.log(0.05), math.log(20.0)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if _surprise(scores, truth, a) < _surprise(scores, truth, b) else (a, high)
    return round(math.exp((low + high) / 2), 4)


def _surprise(scores: NDArray, truth: NDArray, log_temperature: float) -> float:
    shares = probabilities(scores, math.exp(log_temperature))
    return float(-np.log(shares[np.arange(len(truth)), truth] + 1e-12).mean())


def probabilities(scores: NDArray, heat: float) -> NDArray:
    """(R, K) softmax of scores / temperature over the labels."""
    scaled = scores / heat
    scaled = scaled - scaled.max(1, keepdims=True)
    powers = np.exp(scaled)
    return powers / powers.sum(1, keepdims=True)


def calibration_error(shares: NDArray, truth: NDArray) -> float:
    """Expected calibration error over ten bins of confidence (arXiv:1706.04599, equation 3)."""
    confidence, right = shares.max(1), shares.argmax(1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean())
        for b in range(BINS)
        if (bins == b).any()
    ]
    return float(sum(gaps))


def threshold(shares: NDArray, truth: NDArray) -> float:
    """Return the lowest confidence from which on the wanted share of held-out rows is right; 1 where there is none."""
    order = np.argsort(-shares.max(1), kind="stable")
    confidence, right = shares.max(1)[order], (shares.argmax(1) == truth)[order]
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    # Rows of one confidence are let through together or not at all.
    is_last = np.append(np.diff(confidence) != 0, True)
    good = np.flatnonzero((precision >= WANTED_PRECISION) & is_last)
    return math.floor(float(confidence[good[-1]]) * 1e4) / 1e4 if len(good) else 1.0


def write_task(folder: Path, facts: Mapping[str, Any], scores: Mapping[str, Any]) -> list[Path]:
    """Write what `classify` and `draft` need beside the adapter; nothing where the data name no labels."""
    labels = list(facts.get("labels") or [])
    if not labels:
        return []
    task: dict[str, Any] = {"schema": SCHEMA_VERSION, "labels": labels, "temperature": 1.0, "abstain_below": 0.0}
    details = scores.get("details") or {}
    if details:
        raw, truth = np.array(details["scores"]), np.array(details["truth"])
        heat = temperature(raw, truth)
        shares = probabilities(raw, heat)
        task |= {"temperature": heat, "abstain_below": threshold(shares, truth)}
        task["held_out"] = {
            "rows": len(truth),
            "calibration_error": round(calibration_error(shares, truth), 4),
            "calibration_error_before": round(calibration_error(probabilities(raw, 1.0), truth), 4),
            **{name: round(value, 4) for name, value in scores["logs"].items()},
        }
    path = folder / TASK_FILE
    write_bytes(path, (json.dumps(task, indent=1, ensure_ascii=False) + "\n").encode())
    return [path]
