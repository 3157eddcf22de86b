"""Everything that is known before a model is loaded: the base, the data, the layers wanted, the plan.

Config errors are found in `config.load`; this finds the others, from headers and files alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_scripts import adapting, embedded, optimization, registry
from lora_scripts.adapters.adapter import AdapterMeta
from lora_scripts.config.schema import OFF, Choice, DatasetSection, RunConfig
from lora_scripts.contracts import Base, Family
from lora_scripts.data.cache import Cache
from lora_scripts.data.order import hold_out, is_regularisation, visits_by_purpose
from lora_scripts.data.record import AS_TRAINED, CaptionRules, Dataset, Example, Note, Scan
from lora_scripts.errors import BaseModelError, ConfigError, DataError, Problem
from lora_scripts.files import at_home, user_cache
from lora_scripts.train import sharding
from lora_scripts.train.plan import Plan, make


@dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes:
        config: what the file says, and the family's own defaults for what it does not.
        chosen: the keys that got their value from the family.
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
    chosen: Mapping[str, Any] = field(default_factory=dict)


def prepare(config: RunConfig, processes: int = 1) -> Prepared:
    """Recognise the base, read the data, make the plan.

    Raises:
        ConfigError, BaseModelError, DataError: in words, before anything heavy is imported.
    """
    optimization.check_installed(config)
    Cache(cache_folder(config)).check()
    try:
        base = find_base(config)
    except BaseModelError as error:
        raise _with_missing_data(config, error) from error
    family = registry.load("families", base.family).plugin
    objective = _objective(config, family)
    _refuse_foreign_keys(config, family, objective)
    if config.base_precision in adapting.LOW_BITS and config.base_precision not in family.quantises:
        raise ConfigError("config.no_quantised", value=config.base_precision, family=family.name)
    sharding.refuse(config, objective)
    targets = _targets(config, family)
    options = options_of(config, family)
    held_sets = [_held_dataset(path) for path in config.validation.paths] if config.validation.enabled else []
    scan = family.scan(base, datasets(config), options, Cache(cache_folder(config)), held=held_sets)
    scan, told = _for_objective(scan, objective)
    given = config.model_fields_set
    config, chosen = _with_defaults(config, family, base, len(scan.examples))
    config, settled = optimization.settle(config, given)
    layered = adapting.check(config, base, family, targets)
    examples: list[Example] = list(scan.examples)
    held: list[Example] = list(scan.held)
    if config.validation.enabled and not held_sets:
        share = config.validation.share
        examples, held = hold_out(examples, share, config.seed)
        learned = sum(not is_regularisation(example) for example in examples)
        if not learned or not held:
            raise ConfigError("config.validation_no_data", share=share, train=learned, held=len(held))
    if not examples:
        raise DataError("data.no_examples", path=config.train_data_dir or config.datasets[0].path)
    notes = [*settled, *layered, *scan.notes, *told, *_purposes(examples), *family.notes(base, examples)]
    plan = make(config, examples, processes)
    prepared = Prepared(config, base, family, objective, targets, scan, examples, held, plan, notes, chosen)
    return replace(prepared, notes=[*notes, *_serving_notes(prepared)])


def _with_missing_data(config: RunConfig, error: BaseModelError) -> BaseModelError | ConfigError:
    """Return the error, together with what else can be told without a base: data that are not there."""
    alone = config.train_data_dir
    paths = (
        {"train_data_dir": alone} if alone else {f"datasets.{i}.path": d.path for i, d in enumerate(config.datasets)}
    )
    absent = [
        Problem("data.path_missing", {"key": key, "path": path}) for key, path in paths.items() if not path.exists()
    ]
    return ConfigError(problems=[Problem(error.code, error.params), *absent]) if absent else error


def _serving_notes(prepared: Prepared) -> list[Note]:
    """Return what programs that use the result will refuse, while it can still be changed."""
    found: list[Note] = []
    for name in prepared.config.exporters:
        exporter = registry.load("exporters", name)
        if hasattr(exporter, "warnings"):
            layers = adapting.layers(prepared.config, prepared.base, prepared.family, prepared.targets)
            paths = [path for group in layers.values() for path in group]
            rank = adapting.largest_rank(prepared.config, layers)
            found += exporter.warnings(describe(prepared, 0, ""), rank, paths)
    return found


def _purposes(examples: Sequence[Example]) -> list[Note]:
    """Say how many visits are for regularisation, where any are."""
    trained, kept = visits_by_purpose(examples)
    return [Note("data.regularisation", {"trained": trained, "kept": kept})] if kept else []


def _held_dataset(path: Path) -> Dataset:
    return Dataset(path=path)


def _for_objective(scan: Scan, objective: str) -> tuple[Scan, list[Note]]:
    """Keep the examples that the objective learns from; what is left out is counted.

    Raises:
        DataError: there is none, among those to learn from or among those that are only measured.
    """
    learns = registry.load("objectives", objective).LEARNS
    others: Counter[str] = Counter()
    kept = []
    for examples in (scan.examples, scan.held):
        left = Counter(example.kind for example in examples if example.kind not in learns)
        if examples and left.total() == len(examples):
            raise DataError("data.no_kind", objective=objective, found=_counts(left), wanted=", ".join(sorted(learns)))
        kept.append([example for example in examples if example.kind in learns])
        others += left
    if not others:
        return scan, []
    note = Note("data.other_kinds", {"objective": objective, "kinds": _counts(others)})
    return replace(scan, examples=kept[0], held=kept[1]), [note]


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))


def _with_defaults(
    config: RunConfig, family: type[Family], base: Base, rows: int
) -> tuple[RunConfig, Mapping[str, Any]]:
    """Return the config with the family's values for keys that it leaves out, and those values."""
    given = {key: getattr(config, key) for key in config.model_fields_set}
    wanted = {key: value for key, value in family.defaults(base, given, rows).items() if key not in given}
    if config.steps is not None:
        wanted.pop("epochs", None)
    if not wanted:
        return config, {}
    parsed = {key: Choice(**value) if isinstance(value, dict) else value for key, value in wanted.items()}
    return config.model_copy(update=parsed), {key: str(getattr(v, "name", v)) for key, v in parsed.items()}


def _refuse_foreign_keys(config: RunConfig, family: type[Family], objective: str) -> None:
    """Refuse keys that say something to other families or objectives only: nothing is silently ignored.

    Raises:
        ConfigError: names every such key.
    """
    owners: dict[str, list[str]] = {}
    for kind in ("families", "objectives"):
        for name in registry.names(kind):
            module = registry.load(kind, name)
            fields = (module.plugin.Config if kind == "families" else module.Config).model_fields
            for key in fields:
                owners.setdefault(key, []).append(name)
    foreign = [
        key
        for key in sorted(config.model_fields_set & owners.keys())
        if not {family.name, objective} & set(owners[key])
    ]
    if foreign:
        problems = [
            Problem(
                "config.foreign_key",
                {"key": key, "family": family.name, "objective": objective, "owners": ", ".join(owners[key])},
            )
            for key in foreign
        ]
        raise ConfigError(problems=problems)


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
    return base if base.reference else replace(base, reference=config.base_model)


def resolve_base(name: str) -> Path:
    """Return where a base lies: inside the package, on disk, or a hub id as it is ("owner/name").

    Raises:
        BaseModelError: nothing is there.
    """
    if name.startswith(embedded.PREFIX) and not _exists(Path(name)):
        folder = embedded.resolve(name)
        if folder is None:
            raise BaseModelError("base.no_embedded", name=name, known=", ".join(embedded.names()))
        if not embedded.is_there(name):
            raise BaseModelError("base.not_fetched", name=name, command=embedded.command(name))
        return folder
    path = at_home(name)
    if _exists(path) or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.suffix == ".safetensors"):
        return path
    is_near = _exists(path.parent) and path.parent.is_dir()
    siblings = sorted(p.name for p in path.parent.iterdir())[:5] if is_near else []
    raise BaseModelError("base.not_found", path=name, known=", ".join(siblings) or "-")


def _exists(path: Path) -> bool:
    """Say whether a path exists; one that is too long, or holds a NUL, does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def datasets(config: RunConfig) -> list[Dataset]:
    """Return the config's data sets in the reader's terms."""
    sections = list(config.datasets)
    if config.train_data_dir is not None:
        sections = [DatasetSection(path=config.train_data_dir, metadata=config.metadata_path)]
    found = []
    for section in sections:
        rules = section.caption if section.caption is not None else config.caption
        visits: int | str | None = section.visits
        mask = config.mask if section.mask is None else section.mask
        if section.regularisation:
            rules = rules.model_copy(update={"trigger": ""})
            # The general mask is of what is learned.
            mask = section.mask
            if not {"visits", "repeats"} & section.model_fields_set:
                visits = AS_TRAINED
        found.append(
            Dataset(
                path=section.path,
                metadata=section.metadata,
                repeats=section.repeats,
                weight=section.weight,
                captions=CaptionRules(**rules.model_dump()),
                flip=config.flip if section.flip is None else section.flip,
                missing_pictures=config.missing_pictures,
                class_words=section.class_words,
                mask=None if mask == OFF[0] else mask,
                regularisation=section.regularisation,
                visits=visits,
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
        kind=config.adapter.name,
        name=name or config.resolved_name,
        base_name=prepared.base.name,
        base_hash=base_hash,
        base_reference=prepared.base.reference,
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
            "clip_skip": str(config.clip_skip) if config.clip_skip > 1 else "None",
            "min_snr_gamma": str(config.min_snr_gamma),
            "gradient_accumulation_steps": str(plan.accumulation),
            "total_batch_size": str(plan.step_size),
        },
    )


def options_of(config: RunConfig, family: type[Family]) -> Any:
    """Return the config's keys that the family reads, as its own `Config`."""
    return family.Config(**{key: getattr(config, key) for key in family.Config.model_fields})


def cache_folder(config: RunConfig) -> Path:
    """Return `cache_dir`, else the user's cache folder: never the data's own."""
    return config.cache_dir if config.cache_dir is not None else user_cache()


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
    adapting.check_patterns(config)
    if isinstance(wanted, tuple):
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
