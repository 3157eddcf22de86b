"""Everything that is known before a model is loaded: the base, the data, the layers wanted, the plan.

Config errors are found in `config.load`; this finds the others, from headers and files alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_scripts import embedded, registry
from lora_scripts.adapters.adapter import AdapterMeta
from lora_scripts.config.schema import DatasetSection, RunConfig
from lora_scripts.contracts import Base, Family
from lora_scripts.data.order import hold_out
from lora_scripts.data.record import CaptionRules, Dataset, Example, Note, Scan
from lora_scripts.errors import BaseModelError, ConfigError, DataError
from lora_scripts.train.plan import Plan, make


@dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes:
        targets: regular expressions over whole module paths, by component.
        examples, held: trained and held-out examples.
    """

    config: RunConfig
    base: Base
    family: type[Family]
    objective: str
    targets: Mapping[str, Sequence[str]]
    scan: Scan
    examples: Sequence[Example]
    held: Sequence[Example]
    plan: Plan
    notes: Sequence[Note]


def prepare(config: RunConfig, processes: int = 1) -> Prepared:
    """Recognise the base, read the data, make the plan.

    Raises:
        ConfigError, BaseModelError, DataError: in words, before anything heavy is imported.
    """
    base = find_base(config)
    family = registry.load("families", base.family).plugin
    objective = _objective(config, family)
    targets = _targets(config, family)
    reader = registry.load("readers", family.reads)
    scan = reader.read(datasets(config), base.sizes(config.resolution), max_bad_fraction=config.max_bad_fraction)
    _check_adapter(config, base, family, targets)
    examples: list[Example] = list(scan.examples)
    held: list[Example] = []
    if config.validation.enabled:
        share = config.validation.share
        examples, held = hold_out(examples, share, config.seed)
        if not examples or not held:
            raise ConfigError("config.validation_no_data", share=share, train=len(examples), held=len(held))
    if not examples:
        raise DataError("data.no_examples", path=config.train_data_dir or config.datasets[0].path)
    notes = [*scan.notes, *family.notes(base, examples)]
    return Prepared(
        config, base, family, objective, targets, scan, examples, held, make(config, examples, processes), notes
    )


def find_base(config: RunConfig) -> Base:
    """Return what `base_model` is.

    Raises:
        ConfigError: the config says another family or prediction type than the files.
        BaseModelError: it is absent, or no family recognises it.
    """
    path = resolve_base(config.base_model)
    base = None
    said = config.prediction_type
    for name in registry.names("families"):
        base = registry.load("families", name).plugin.recognise(path, "" if said == "auto" else said)
        if base is not None:
            break
    if base is None:
        raise BaseModelError("base.unrecognised", path=path, known=", ".join(registry.names("families")))
    if config.family not in ("auto", base.family):
        raise ConfigError("config.family_differs", family=config.family, base=config.base_model, found=base.family)
    if said != "auto" and base.prediction_type not in ("", said):
        raise ConfigError("config.prediction_differs", value=said, base=config.base_model, found=base.prediction_type)
    if said == "auto" and not base.prediction_type:
        raise ConfigError("config.prediction_unknown", base=config.base_model)
    if said != "auto" and not base.prediction_type:
        base = replace(base, prediction_type=said)
    return base


def resolve_base(name: str) -> Path:
    """Return where a base lies: inside the package, on disk, or a hub id as it is ("owner/name").

    Raises:
        BaseModelError: nothing is there.
    """
    if name.startswith(embedded.PREFIX) and not Path(name).exists():
        folder = embedded.resolve(name)
        if folder is None:
            raise BaseModelError("base.no_embedded", name=name, known=", ".join(embedded.names()))
        return folder
    path = Path(name).expanduser()
    if path.exists() or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.suffix == ".safetensors"):
        return path
    siblings = sorted(p.name for p in path.parent.iterdir())[:5] if path.parent.is_dir() else []
    raise BaseModelError("base.not_found", path=name, known=", ".join(siblings) or "-")


def datasets(config: RunConfig) -> list[Dataset]:
    """Return the config's data sets in the reader's terms."""
    sections = list(config.datasets)
    if config.train_data_dir is not None:
        sections = [DatasetSection(path=config.train_data_dir, metadata=config.metadata_path)]
    found = []
    for section in sections:
        rules = section.caption if section.caption is not None else config.caption
        found.append(
            Dataset(
                path=section.path,
                metadata=section.metadata,
                repeats=section.repeats,
                weight=section.weight,
                captions=CaptionRules(**rules.model_dump()),
                flip=config.flip if section.flip is None else section.flip,
                missing_pictures=config.missing_pictures,
            )
        )
    return found


def file_names(prepared: Prepared) -> dict[str, str]:
    """Return the LoRA file each exporter will write, refusing what a format cannot hold.

    Raises:
        ConfigError: an exporter refuses this adapter.
    """
    meta = describe(prepared, prepared.plan.steps, "")
    names = {}
    for name in prepared.config.exporters:
        exporter = registry.load("exporters", name)
        reason = exporter.refuses(meta)
        if reason is not None:
            raise ConfigError(reason.code, **reason.params)
        names[name] = exporter.file_name(meta)
    return names


def describe(prepared: Prepared, steps: int, base_hash: str, name: str = "") -> AdapterMeta:
    """Return what the LoRA files tell about themselves: nothing of when, where or by which run."""
    config, plan = prepared.config, prepared.plan
    area = prepared.base.sizes(config.resolution).resolutions[0]
    return AdapterMeta(
        family=prepared.base.family,
        name=name or config.resolved_name,
        base_name=prepared.base.name,
        base_hash=base_hash,
        variant=prepared.base.variant,
        prediction_type=prepared.base.prediction_type,
        resolution=(area, area),
        steps=steps,
        epochs=-(-steps // plan.steps_per_epoch),
        trigger=config.caption.trigger,
        training={
            "num_train_images": str(plan.visits),
            "num_batches_per_epoch": str(plan.steps_per_epoch),
            "max_train_steps": str(plan.steps),
            "learning_rate": str(config.learning_rate),
            "lr_scheduler": config.schedule.name,
            "optimizer": config.optimizer.name,
            "seed": str(config.seed),
            "noise_offset": str(config.noise_offset or None),
            "min_snr_gamma": str(config.min_snr_gamma),
            "gradient_accumulation_steps": str(plan.accumulation),
            "total_batch_size": str(plan.step_size),
        },
    )


def cache_folder(config: RunConfig) -> Path:
    """Return `cache_dir`, else the user's cache folder: never the pictures' own."""
    if config.cache_dir is not None:
        return config.cache_dir
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "lora-scripts"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "lora-scripts" / "cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "lora-scripts"


def _check_adapter(config: RunConfig, base: Base, family: type[Family], targets: Mapping[str, Sequence[str]]) -> None:
    """Refuse layers that the base does not have, and a LoRA that cannot be continued, before weights are loaded."""
    if config.init_lora is not None:
        from lora_scripts.adapters import files

        files.check(config.init_lora, rank=config.lora_rank, components=targets)
    if isinstance(config.lora_targets, tuple):
        from lora_scripts.adapters.inject import choose

        modules = family.skeleton(base)
        choose({component: modules[component] for component in targets}, targets)


def _objective(config: RunConfig, family: type[Family]) -> str:
    if config.objective == "auto":
        return family.objectives[0]
    if config.objective not in family.objectives:
        known = ", ".join(family.objectives)
        raise ConfigError("config.objective_unserved", value=config.objective, family=family.name, known=known)
    return config.objective


def _targets(config: RunConfig, family: type[Family]) -> Mapping[str, Sequence[str]]:
    """Return the patterns by component; the text encoder's only when it trains."""
    wanted = config.lora_targets
    if isinstance(wanted, tuple):
        for pattern in wanted:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError("config.bad_pattern", value=pattern, reason=error) from error
        components = {component: wanted for component in family.target_presets[family.default_preset]}
    else:
        preset = family.default_preset if wanted == "auto" else wanted
        if preset not in family.target_presets:
            known = ", ".join(family.target_presets)
            raise ConfigError("config.preset_unknown", value=wanted, family=family.name, known=known)
        components = dict(family.target_presets[preset])
    if not config.train_text_encoder.enabled:
        components = {name: patterns for name, patterns in components.items() if not name.startswith("text_encoder")}
    return components
