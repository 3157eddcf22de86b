"""The settings of a short run over a folder of tiny pictures, and the names of what it exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILES = ("x.safetensors", "pytorch_lora_weights.safetensors")


def settings(folder: Path, base: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Two pictures a step in float32, without previews; pictures and cache lie in `folder`."""
    return {
        "train_data_dir": str(folder / "pictures"),
        "base_model": str(base),
        "output_dir": str(out),
        "cache_dir": str(folder / "cache"),
        "name": "x",
        "lora_rank": 2,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "learning_rate": 1e-2,
        "base_precision": "float32",
        "preview": False,
        **more,
    }
