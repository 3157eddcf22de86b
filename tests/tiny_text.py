"""A language model of a few thousand weights, built in code, with a real tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>")


def tokenizer() -> Any:
    """A byte-level tokenizer without merges: 256 bytes and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    made.chat_template = TEMPLATE
    return made


def write_base(folder: Path, *, template: bool = True, seed: int = 0, dtype: Any = None, **settings: Any) -> Path:
    """Write a Llama of two layers as a folder that transformers loads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    if not template:
        words.chat_template = None
    wanted = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(wanted | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual start, so that rows and positions make a visible difference.
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    model.to(dtype or torch.float32).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


MESSAGES = (
    ("my card was charged twice", "billing", "Sorry, the second charge goes back today."),
    ("the parcel never came", "delivery", "Sorry, we look for it now."),
    ("invoice 12 shows the wrong sum", "billing", ""),
    ("the courier left it in the rain", "delivery", ""),
    ("why do I pay for March again", "billing", "Hello, March is paid back."),
    ("tracking has not moved since Monday", "delivery", ""),
    ("two payments, one order", "billing", ""),
    ("nobody rang and the box is gone", "delivery", "Hello, we send it again."),
)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def task_rows(count: int = 8, start: int = 0) -> list[dict[str, Any]]:
    """Messages with labels, some with replies; numbers make repeated ones differ."""
    rows = []
    for i in range(start, start + count):
        message, label, reply = MESSAGES[i % len(MESSAGES)]
        row = {"id": f"m{i}", "customer": f"c{i}", "message": f"{message} {i}", "label": label}
        rows.append(row | ({"reply": f"{reply} {i}"} if reply else {}))
    return rows


def config(folder: Path, **values: Any) -> dict[str, Any]:
    """A whole run on the tiny base and eight messages, in float32, without previews."""
    base = folder / "base"
    if not base.exists():
        write_base(base)
    data = folder / "train.jsonl"
    if not data.exists():
        write_rows(data, task_rows())
    return {
        "base_model": str(base),
        "train_data_dir": str(data),
        "output_dir": str(folder / "out"),
        "epochs": 2,
        "batch_size": 4,
        "lora_rank": 4,
        "learning_rate": 1e-2,
        "save_steps": 100,
        "base_precision": "float32",
        "preview": False,
        "cache_dir": str(folder / "cache"),
    } | values
