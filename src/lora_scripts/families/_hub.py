"""A base by its hub id, "owner/name": a local snapshot of its JSON and safetensors files; nothing of it is executed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_scripts.errors import MachineError

INDEX = ("model_index.json",)
SETTINGS = ("model_index.json", "*/config.json", "*/*.index.json", "*/*_config.json", "tokenizer*/*")


def weight_patterns(part: str, stem: str) -> tuple[str, str]:
    """Return the names a part's weights may have, whole and in shards; not its variants, such as "non_ema"."""
    return f"{part}/{stem}.safetensors", f"{part}/{stem}-?????-of-?????.safetensors"


def fetch(repository: str, patterns: Sequence[str]) -> Path:
    """Return the snapshot's folder, downloading what the patterns name and the local cache lacks.

    Raises:
        MachineError: there is no such repository, no access to it, or no network and no copy in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Pickles that a pattern such as "tokenizer*/*" would name stay where they are.
        ignored = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py"]
        return Path(snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=ignored))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).split("\n")[0][:160]
        raise MachineError("base.hub", name=repository, reason=reason) from error
