"""What an optimizer asks of the rest of the config, by constants of its module.

    RATE      its learning rate where the config gives none
    SCHEDULE  the one schedule it goes with
    AVERAGES  it keeps averaged weights of its own, beside which `ema` has no place
    ONE_RATE  all tensors learn at one rate, the text encoder's too

Any plug-in of a choice may also have NEEDS: {package: the extra that brings it}.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

from lora_scripts import registry
from lora_scripts.config.schema import Choice, RunConfig
from lora_scripts.data.record import Note
from lora_scripts.errors import ConfigError, MachineError, Problem

# A rate so many times below an optimizer's own was meant for another.
LOW = 10
CHOICES = {"optimizer": "optimizers", "schedule": "schedules", "adapter": "adapters"}


def check_installed(config: RunConfig) -> None:
    """Refuse a choice whose library is not there, before anything is read.

    Raises:
        MachineError: it names the extra.
    """
    for key, kind in CHOICES.items():
        name = getattr(config, key).name
        for package, extra in getattr(registry.load(kind, name), "NEEDS", {}).items():
            if find_spec(package) is None:
                raise MachineError("llm.no_extra", what=f"{key}: {name}", extra=extra)


def settle(config: RunConfig, given: Collection[str]) -> tuple[RunConfig, list[Note]]:
    """Return the config with what its optimizer needs, and a note that says what that was.

    Args:
        given: the keys that the user's config says.

    Raises:
        ConfigError: the user said something else.
    """
    name = config.optimizer.name
    module = registry.load("optimizers", name)
    chosen: dict[str, Any] = {}
    told: dict[str, object] = {}
    if "optimizer" in given and hasattr(module, "RATE") and "learning_rate" not in given:
        chosen["learning_rate"] = module.RATE
        told["learning_rate"] = f"{module.RATE:g}"
    problems = []
    if hasattr(module, "SCHEDULE") and config.schedule.name != module.SCHEDULE:
        if "schedule" in given:
            values = {"optimizer": name, "schedule": config.schedule.name, "wanted": module.SCHEDULE}
            problems.append(Problem("config.schedule_fixed", values))
        chosen["schedule"] = Choice(name=module.SCHEDULE)
        told["schedule"] = module.SCHEDULE
    if getattr(module, "AVERAGES", False) and config.ema is not None:
        problems.append(Problem("config.two_averages", {"optimizer": name, "value": config.ema}))
    if getattr(module, "ONE_RATE", False):
        rate = chosen.get("learning_rate", config.learning_rate)
        problems += _other_rates(config, rate)
        text = config.train_text_encoder
        if text.enabled and text.learning_rate is None:
            chosen["train_text_encoder"] = text.model_copy(update={"learning_rate": rate})
            told["train_text_encoder.learning_rate"] = f"{rate:g}"
    if problems:
        raise ConfigError(problems=problems)
    notes = _low_rate(config, module) if "learning_rate" in given else []
    if not chosen:
        return config, notes
    shown = ", ".join(f"{key} {value}" for key, value in told.items())
    notes.append(Note("config.optimizer_defaults", {"optimizer": name, "chosen": shown}))
    return config.model_copy(update=chosen), notes


def _low_rate(config: RunConfig, module: Any) -> list[Note]:
    """Say so where a rate is meant for another optimizer: one that finds its rate itself multiplies it by the given."""
    usual = getattr(module, "RATE", None)
    if not getattr(module, "ONE_RATE", False) or usual is None or config.learning_rate >= usual / LOW:
        return []
    values = {"optimizer": config.optimizer.name, "rate": f"{config.learning_rate:g}", "usual": f"{usual:g}"}
    return [Note("config.low_rate", values)]


def _other_rates(config: RunConfig, rate: float) -> list[Problem]:
    """Return a problem for each rate that the config gives to a part of the tensors."""
    parts = {f"lora_layers.{i}.learning_rate": layer.learning_rate for i, layer in enumerate(config.lora_layers)}
    if config.train_text_encoder.enabled:
        parts["train_text_encoder.learning_rate"] = config.train_text_encoder.learning_rate
    return [
        Problem(
            "config.one_rate",
            {"key": key, "value": f"{value:g}", "rate": f"{rate:g}", "optimizer": config.optimizer.name},
        )
        for key, value in parts.items()
        if value not in (None, rate)
    ]
