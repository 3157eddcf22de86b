"""Tiny real language models, on disk with a tokenizer, and adapters with values that matter."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.inject import Injected, inject
from tests.adapters.networks import shake

EVERYWHERE = (r"model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",)
ATTENTION = (r"model\.layers\.\d+\.self_attn\.(q|v)_proj",)
MODULE = "model.layers.1.self_attn.k_proj"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"


def model(kind: str = "llama", **values: Any) -> Any:
    """Return a causal language model of 2 layers and width 32 with seeded weights, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    more = {"head_dim": 8} if kind in ("qwen3", "gemma2") else {}
    config = AutoConfig.for_model(kind, **{**SIZES, **more, **values})
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return AutoModelForCausalLM.from_config(config).eval()


@cache
def _words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    fast.chat_template = TEMPLATE
    return fast


def save_base(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **values: Any) -> Path:
    """Write a base as people have them: config, weights, tokenizer, chat template."""
    shards = values.pop("max_shard_size", "5GB")
    model(kind, **values).to(dtype).save_pretrained(folder, max_shard_size=shards)
    _words().save_pretrained(folder)
    return folder


def meta(base: Path | None = None, **values: Any) -> AdapterMeta:
    more = {"base_reference": str(base) if base else "", "base_hash": "cd" * 32, "variant": "llama", **values}
    return AdapterMeta(family="causal_lm", name="tiny drafts", base_name="tiny-lm", **more)


def put(live: Any, targets=EVERYWHERE, *, rank: int = 4, alpha: float = 8.0) -> Injected:
    return inject(
        {"language_model": live}, targets={"language_model": targets}, rank=rank, alpha=alpha, dropout=0, seed=3
    )


def adapter(
    targets=EVERYWHERE,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    kind: str = "llama",
    of: AdapterMeta | None = None,
    **values,
) -> Adapter:
    """Return an adapter of the tiny model that moves its output."""
    injected = put(model(kind, **values), targets, rank=rank, alpha=alpha)
    shake(injected)
    return injected.adapter(of or meta(variant=kind))


@torch.no_grad()
def logits(live: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 64, (2, 12), generator=generator)
    return live(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
