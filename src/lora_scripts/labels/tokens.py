"""Tokens of captions, by the base's tokenizer or CLIP's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_scripts.doctor import tokens
from lora_scripts.doctor.settings import Settings
from lora_scripts.labels.options import LabelOptions


def limit(options: LabelOptions) -> int:
    """Return how many tokens a caption may have: as told, else what the base reads."""
    return tokens.limit(_settings(options))


def counter(options: LabelOptions) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that counts the tokens of texts."""
    settings = _settings(options)
    return lambda texts: tokens.count(settings, texts)


def _settings(options: LabelOptions) -> Settings:
    return Settings(options.input, base=options.base, max_tokens=options.max_tokens)
