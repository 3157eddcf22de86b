"""What a run was made from, so that the same command resumes it and a changed one is refused by name."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_scripts.config.schema import RunConfig, free_keys
from lora_scripts.data.record import Example
from lora_scripts.errors import BaseModelError, ConfigError, DataError, Problem

LIBRARIES = (
    *("lora-scripts", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy"),
    *("bitsandbytes", "pytorch_optimizer"),
)
PATH_KEYS = frozenset({"output_dir", "train_data_dir", "metadata_path"})


def config_facts(config: RunConfig) -> dict[str, Any]:
    """Return the config as JSON values."""
    return config.model_dump(mode="json")


def data_facts(examples: Sequence[Example]) -> dict[str, str]:
    """Return each example's fingerprint by id."""
    return {example.id: example.fingerprint for example in examples}


def environment() -> dict[str, str]:
    """Return the versions that may change a result."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def check_same(record: Mapping[str, Any], config: RunConfig, examples: Sequence[Example], base_hash: str) -> None:
    """Refuse to resume a run with another config, other data or another base.

    Raises:
        ConfigError: names every differing key, old -> new.
        DataError: names the changed, added and removed examples.
        BaseModelError: the base's weights are others.
    """
    problems = [
        Problem("train.config_changed", {"key": key, "old": old, "new": new})
        for key, (old, new) in changed_keys(record, config).items()
    ]
    if problems:
        problems.append(Problem("train.config_changed_remedy", {"path": config.output_dir}))
        raise ConfigError(problems=problems)
    changed = sorted(key for keys in changed_data(record, examples).values() for key in keys)
    if changed:
        names = ", ".join(changed[:5])
        raise DataError("train.data_changed", count=len(changed), names=names, path=config.output_dir)
    if record["base"]["hash"] != base_hash:
        raise BaseModelError("train.base_changed", base=config.base_model, path=config.output_dir)


def changed_keys(record: Mapping[str, Any], config: RunConfig, *, free: bool = False) -> dict[str, tuple[Any, Any]]:
    """Return old and new value by dotted key, where they differ.

    Args:
        free: those that may always differ, too; paths of the data and the output never count.
    """
    old, new = flat(_completed(record["config"])), flat(config_facts(config))
    left = PATH_KEYS if free else free_keys() | PATH_KEYS
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] not in left and old.get(key) != new.get(key)
    }


def changed_data(record: Mapping[str, Any], examples: Sequence[Example]) -> dict[str, list[str]]:
    """Return the ids of the examples that were added, removed and edited."""
    before, now = record["data"], data_facts(examples)
    return {
        "added": sorted(now.keys() - before.keys()),
        "removed": sorted(before.keys() - now.keys()),
        "edited": sorted(key for key in before.keys() & now.keys() if before[key] != now[key]),
    }


def changed_environment(record: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return old and new value of what differs; what is unknown on either side is no difference."""
    before = record.get("environment", {})
    return {key: (before[key], now[key]) for key in sorted(before.keys() & now.keys()) if before[key] != now[key]}


def recorded_config(record: Mapping[str, Any], path: Path) -> RunConfig:
    """Return the config a run was started with; keys that came after it have their defaults.

    Raises:
        ConfigError: it cannot be understood.
    """
    values = record["config"]
    try:
        whole = RunConfig.model_validate(values)
        nothing: dict[str, Any] = {}
        bare = config_facts(RunConfig.model_construct(**nothing))
        # A key that was left out must stay so: a family refuses keys that say nothing to it.
        given = record.get("given") or [key for key in values if values[key] != bare.get(key)]
        return RunConfig.model_validate({key: values[key] for key in given if key in config_facts(whole)})
    except ValidationError as error:
        raise ConfigError("train.record_broken", path=path / "run.json") from error


def _completed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an earlier config with the defaults of keys that came after it."""
    try:
        return config_facts(RunConfig.model_validate(values))
    except ValidationError:
        return values


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
