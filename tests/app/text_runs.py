"""Runs on a tiny language model, and the same numbers made with plain transformers and peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_scripts import app
from lora_scripts.config.load import from_mapping
from lora_scripts.data.record import Message
from lora_scripts.data.texts import tasks
from lora_scripts.events import Command, Stepped
from tests import tiny_text

FILES = ("adapter_model.safetensors", "adapter_config.json", "task.json")


def train(folder: Path, base: Path, *, listeners: Sequence[Any] = (), told: Any = None, **values: Any) -> app.Outcome:
    made = from_mapping(tiny_text.config(folder, **({"base_model": str(base)} | values)))
    return app.train(made, listeners=listeners, tell=told)


def losses_of(folder: Path, base: Path, **values: Any) -> list[float]:
    losses: list[float] = []
    train(folder, base, listeners=[lambda e: losses.append(e.loss) if isinstance(e, Stepped) else None], **values)
    return losses


def stop_at(step: int):
    return lambda event: Command.STOP if isinstance(event, Stepped) and event.step == step else None


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def plain(base: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    """Tokenizer and model as transformers and peft load them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    return AutoTokenizer.from_pretrained(base), model.eval()


def logprobs(words: Any, model: Any, prompt: Sequence[Mapping[str, str]], answer: str) -> torch.Tensor:
    """(N,) log p of each token of the answer and of the token that ends it, from the whole table of logits."""
    asked = words.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    before = words(asked, add_special_tokens=False)["input_ids"]
    after = words(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        table = model(input_ids=torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    places = torch.arange(len(before) - 1, len(before) + len(after) - 1)
    return table[places, torch.tensor(after)]


def asked(*messages: Message) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def say(text: str) -> list[dict[str, str]]:
    return asked(Message("user", text))


def by_hand(words: Any, model: Any) -> float:
    """The mean over target tokens of everything that `tiny_text.task_rows` teaches."""
    found = []
    for row in tiny_text.task_rows():
        found.append(logprobs(words, model, asked(*tasks.classify_prompt(row["message"])), row["label"]))
        if "reply" in row:
            prompt = tasks.draft_prompt(row["message"], row["label"])
            found.append(logprobs(words, model, asked(*prompt), row["reply"]))
    assert len(found) == 12
    return float(-torch.cat(found).mean())


def pairs(count: int = 6) -> list[dict[str, str]]:
    return [{"prompt": f"say {i}", "chosen": f"yes, {i}", "rejected": f"no, never {i}!"} for i in range(count)]


def thumbs(count: int = 6) -> list[dict[str, Any]]:
    return [{"prompt": f"say {i}", "completion": f"well, {i}", "label": i % 2 == 0} for i in range(count)]


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return str(tiny_text.write_rows(folder / name, rows))
