"""What a training config says of the data to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_scripts import messages, registry
from lora_scripts.config.schema import RunConfig
from lora_scripts.contracts import Base
from lora_scripts.data.record import Dataset
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import BaseModelError, ConfigError, LoraScriptsError


def settings_of(config: RunConfig, config_path: Path, folder: Path | None) -> Settings:
    """Return folder, captions, sizes, trigger, base and held-out part as a run with this config has them.

    Args:
        folder: which of the config's data sets, or another folder with the config's other values; None where the
            config names one only.

    Raises:
        ConfigError: it names several, and none was chosen.
    """
    from lora_scripts.preparation import datasets

    sets = [one for one in datasets(config) if not one.regularisation]
    chosen = _chosen(sets, config_path, folder)
    held = config.validation.paths[0] if config.validation.enabled and config.validation.paths else None
    settings = Settings(
        path=folder or chosen.path,
        held_out=held,
        metadata=chosen.metadata,
        batch_size=config.batch_size,
        # The config's trigger is put in front of every caption in training; captions themselves need not have it.
        trigger=None if not chosen.captions.trigger else chosen.captions.trigger,
        max_tokens=config.max_length,
    )
    return with_base(settings, config.base_model, config.resolution[0] if config.resolution else None)


def with_base(settings: Settings, name: str, resolution: int | None) -> Settings:
    """Add a base, and the sizes it wants; one that lies elsewhere, such as on the hub, is left out.

    Args:
        resolution: what was asked for; None is the base's own.
    """
    base = _recognised(name)
    if base is not None:
        settings = replace(settings, base=Path(name), multiple=base.multiple or settings.multiple)
        resolution = resolution or base.resolution
    return replace(settings, resolution=resolution or settings.resolution)


def _recognised(name: str) -> Base | None:
    from lora_scripts.preparation import resolve_base

    try:
        path = resolve_base(name)
    except BaseModelError:
        return None
    if not path.exists():
        return None
    for family in registry.names("families"):
        try:
            base = registry.load("families", family).plugin.recognise(path)
        except LoraScriptsError:
            return None
        if base is not None:
            return base
    return None


def _chosen(sets: list[Dataset], config_path: Path, folder: Path | None) -> Dataset:
    if folder is not None:
        near = [one for one in sets if one.path.resolve() == folder.resolve()]
        return (
            near[0] if near else Dataset(path=folder, captions=sets[0].captions if sets else Dataset(folder).captions)
        )
    if len({one.path for one in sets}) != 1:
        names = ", ".join(messages.printable(str(one.path)) for one in sets) or "-"
        raise ConfigError("doctor.several_folders", config=config_path, folders=names)
    return sets[0]
