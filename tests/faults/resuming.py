"""Short runs of both kinds on the tiny bases, stopped and carried on; their results as sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_scripts import app
from lora_scripts.config.load import from_mapping
from lora_scripts.config.schema import RunConfig
from lora_scripts.errors import Stopped
from lora_scripts.events import Command, Stepped
from tests import tiny, tiny_text

RESULT = {"pictures": "out.safetensors", "text": "adapter_model.safetensors"}
# Rates at which ten steps move the weights.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-2, "ema": 0.9},
    "schedule_free": {"optimizer": "schedule_free", "learning_rate": 1e-2},
    "prodigy": {"optimizer": {"name": "prodigy", "d0": 1e-4}, "learning_rate": 1.0},
    "adamw8bit": {"optimizer": {"name": "adamw8bit", "min_8bit_size": 16}, "learning_rate": 1e-2},
}


def pictures(folder: Path, base: Path, **values: Any) -> dict[str, Any]:
    """Settings of ten steps over five pictures, with everything drawn that can be."""
    if not (folder / "pictures").exists():
        tiny.tiny_pictures(folder / "pictures", 5)
        for number, path in enumerate(sorted((folder / "pictures").glob("*.png"))):
            path.with_suffix(".txt").write_text(f"a thing, number {number}, red, round", encoding="utf-8")
    settings = {
        "train_data_dir": str(folder / "pictures"),
        "base_model": str(base),
        "lora_rank": 2,
        "lora_targets": [r".*attn2\.to_[qv]"],
        "exporters": ["kohya"],
        "base_precision": "float32",
        "lora_dropout": 0.1,
        "flip": True,
        "caption": {"dropout": 0.2, "shuffle": True},
        "batch_size": 1,
        "gradient_accumulation": 1,
        "steps": 10,
    }
    return _common(folder, {**settings, **values})


def text(folder: Path, base: Path, **values: Any) -> dict[str, Any]:
    """Settings of ten steps over the conversations of `tiny_text`."""
    settings = tiny_text.config(folder, base_model=str(base))
    for key in ("epochs", "output_dir", "cache_dir", "save_steps"):
        settings.pop(key, None)
    settings |= {"lora_dropout": 0.1, "batch_size": 1, "gradient_accumulation": 1, "steps": 10}
    return _common(folder, {**settings, **values})


def _common(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "preview": False,
        "save_steps": 100,
        **settings,
    }


def config(settings: dict[str, Any], **values: Any) -> RunConfig:
    return from_mapping({**settings, **values})


def stop_at(step: int) -> Callable[[Any], Command | None]:
    return lambda event: Command.STOP if isinstance(event, Stepped) and event.step == step else None


def run(made: RunConfig, *stops: int, losses: list[float] | None = None, **options: Any) -> app.Outcome:
    """Train; at each of the steps, stop and carry on with the same command."""
    heard: Sequence[Any] = () if losses is None else [lambda e: losses.append(e.loss) if isinstance(e, Stepped) else 0]
    for step in stops:
        try:
            app.train(made, listeners=[*heard, stop_at(step)], **options)
        except Stopped:
            continue
        raise AssertionError(f"it did not stop at step {step}")
    return app.train(made, listeners=heard, **options)


def digest(folder: Path) -> str:
    """Return the sha256 of the exported adapter."""
    path = next(folder / name for name in RESULT.values() if (folder / name).exists())
    return hashlib.sha256(path.read_bytes()).hexdigest()
