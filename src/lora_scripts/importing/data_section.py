"""`datasets:` of our config from a kohya project's folders, and a verdict on each setting that describes data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.data.record import Note
from lora_scripts.importing import captions
from lora_scripts.importing.sources import Source
from lora_scripts.importing.subsets import ALIASES, KohyaDataset, Subset, size_of, tables_of
from lora_scripts.importing.translation import (
    CHANGED,
    UNDERSTOOD,
    UNSUPPORTED,
    Line,
    Translation,
    hidden,
    shown,
    to_flag,
    to_number,
)

# Settings of captions -> key of our caption rules.
CAPTIONS = {
    "shuffle_caption": "shuffle",
    "keep_tokens": "keep_tokens",
    "keep_tokens_separator": "keep_separator",
    "caption_prefix": "prefix",
    "caption_suffix": "suffix",
    "caption_dropout_rate": "dropout",
    "caption_tag_dropout_rate": "tag_dropout",
}
# Settings with no place here -> values that mean "off", besides false, 0 and nothing; and why.
OFF: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "color_aug": ((), "import.why.augmentation"),
    "random_crop": ((), "import.why.augmentation"),
    "face_crop_aug_range": ((), "import.why.augmentation"),
    "secondary_separator": ((), "import.why.caption_rule"),
    "enable_wildcard": ((), "import.why.caption_rule"),
    "caption_separator": ((",",), "import.why.caption_rule"),
    "caption_dropout_every_n_epochs": ((), "import.why.caption_rule"),
    "token_warmup_min": ((1,), "import.why.caption_rule"),
    "token_warmup_step": ((), "import.why.caption_rule"),
    "network_multiplier": ((1,), "import.why.nothing_alike"),
    "resize_interpolation": ((), "import.why.interpolation"),
    "skip_image_resolution": ((), "import.why.skipped_pictures"),
    "custom_attributes": ((), "import.why.nothing_alike"),
    "validation_seed": ((), "import.why.nothing_alike"),
}
# Settings whose meaning here is decided by all data sets together.
TOGETHER = ("resolution", "batch_size", "train_batch_size", "caption_extension", "caption_extention")
BUCKETS = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")
PLACES = {
    "num_repeats": "datasets[].repeats",
    "dataset_repeats": "datasets[].repeats",
    "image_dir": "datasets[].path",
    "train_data_dir": "datasets[].path",
    "reg_data_dir": "datasets[].regularisation",
    "is_reg": "datasets[].regularisation",
    "class_tokens": "datasets[].class_words",
    "flip_aug": "datasets[].flip",
    "alpha_mask": "datasets[].mask: alpha",
    "conditioning_data_dir": "datasets[].mask",
}
IDLE = ("cache_info", "enable_bucket")
DATA_KEYS = (*CAPTIONS, *OFF, *TOGETHER, *BUCKETS, *PLACES, *IDLE)
DATA_KEYS = (*DATA_KEYS, "bucket_no_upscale", "metadata_file", "in_json")
DATA_KEYS = (*DATA_KEYS, "subsets", "validation_split", "dataset_config")
"""Every setting of a data set's file, and those of a training file that say the same."""


@dataclass
class DataPart:
    """The data as a whole.

    Attributes:
        tables: captions that are written beside the config, by the folder's number.
        rates: caption settings that every folder shares.
    """

    source: Source
    datasets: Sequence[KohyaDataset]
    masked: bool
    prior_weight: float
    tables: dict[int, bytes] = field(default_factory=dict)

    @property
    def used(self) -> list[tuple[KohyaDataset, Subset]]:
        """Every folder that is trained on, once where several data sets only give it several resolutions."""
        sets = self.datasets[:1] if self.several_resolutions else self.datasets
        return [(dataset, subset) for dataset in sets for subset in dataset.subsets if subset.used]

    @property
    def several_resolutions(self) -> bool:
        """Whether all data sets hold the same folders, each at its own resolution."""
        contents = {tuple((s.folder, s.repeats) for s in dataset.subsets if s.used) for dataset in self.datasets}
        return len(self.datasets) > 1 and len(contents) == 1 and len({d.resolution for d in self.datasets}) > 1

    def areas(self) -> list[int]:
        """Return the side of the square of each data set's area, each once."""
        return sorted({math.isqrt(d.resolution[0] * d.resolution[1]) for d in self.datasets})


def put_data(work: Translation, part: DataPart, table_name: Callable[[int], Path]) -> None:
    """Set `datasets`, `resolution`, `batch_size` and the shared caption rules.

    Args:
        table_name: where the captions of the folder with a number are written.
    """
    sections, rules = [], [_rules(subset) for _, subset in part.used]
    shared = rules[0] if all(one == rules[0] for one in rules) else None
    for number, (dataset, subset) in enumerate(part.used):
        section: dict[str, Any] = {"path": str(subset.folder)}
        if subset.repeats != 1 and not subset.regularisation:
            section["repeats"] = subset.repeats
        own = captions.theirs(subset) if _knows_captions(part, subset) else captions.ours(subset)
        if own is not None and own != captions.ours(subset):
            part.tables[number] = captions.table(own)
            section["metadata"] = str(table_name(number))
        if subset.options.get("class_tokens"):
            section["class_words"] = str(subset.options["class_tokens"])
        section |= _extras(part, dataset, subset)
        if shared is None:
            section["caption"] = rules[number]
        sections.append(section)
    work.put("datasets", sections)
    if shared:
        work.put("caption", shared)
    areas = part.areas()
    if any("resolution" in dataset.options for dataset in part.datasets):
        work.put("resolution", areas if part.several_resolutions and len(areas) > 1 else areas[-1])
    if part.source.trains or any("batch_size" in dataset.options for dataset in part.datasets):
        work.put("batch_size", part.datasets[0].batch_size)


def _knows_captions(part: DataPart, subset: Subset) -> bool:
    """Say whether the project says where captions are: a folder alone does not."""
    return part.source.trains or part.source.data is not None


def _extras(part: DataPart, dataset: KohyaDataset, subset: Subset) -> dict[str, Any]:
    section: dict[str, Any] = {}
    if subset.flag("flip_aug"):
        section["flip"] = True
    folder = subset.options.get("conditioning_data_dir")
    if part.masked and folder:
        section["mask"] = str(part.source.find(str(folder)))
    elif subset.flag("alpha_mask"):
        section["mask"] = "alpha"
    if subset.regularisation:
        section["regularisation"] = True
        section["visits"] = max(1, dataset.visits().get(subset.where, 1))
        if part.prior_weight != 1 and part.prior_weight > 0:
            section["weight"] = part.prior_weight
    return section


def _rules(subset: Subset) -> dict[str, Any]:
    """Return our caption rules for a folder, what is off left out."""
    rules: dict[str, Any] = {}
    for key, ours in CAPTIONS.items():
        value = subset.options.get(key)
        if value in (None, "", 0, False):
            continue
        if ours == "shuffle":
            rules |= {"shuffle": True} if to_flag(value) else {}
        elif ours in ("prefix", "suffix", "keep_separator"):
            rules[ours] = str(value)
        else:
            number = to_number(value, key) or 0
            rules[ours] = int(number) if ours == "keep_tokens" else number
    return rules


def judge_data(work: Translation, part: DataPart) -> None:
    """Say what becomes of each setting that describes data, at each place where it stands in either file."""
    for key, setting in work.settings.items():
        if part.source.data is not None and key in ("train_data_dir", "reg_data_dir", "in_json") and setting.value:
            work.changed(key, "import.why.overridden")
        elif key in DATA_KEYS and not work.judged(key):
            work.tell(_line(part, key, setting.written, setting.value))
    if part.source.data is None:
        return
    data = part.source.data
    for key, value in data.items():
        if key == "general" and isinstance(value, dict):
            _judge_table(work, part, "general", value)
        elif key != "datasets":
            work.tell(Line(key, hidden(key, value), UNSUPPORTED, note=Note("import.why.unknown", {})))
    for number, dataset in enumerate(data["datasets"]):
        _judge_table(work, part, f"datasets[{number}]", dataset)
        for place, subset in enumerate(tables_of(dataset, f"datasets[{number}]")):
            _judge_table(work, part, f"datasets[{number}].subsets[{place}]", subset)


def _judge_table(work: Translation, part: DataPart, where: str, table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        if key != "subsets":
            work.tell(_line(part, key, f"{where}.{key}", value))


def _line(part: DataPart, key: str, written: str, value: Any) -> Line:
    """Return the verdict on one setting of the data."""

    def line(verdict: str, target: str = "", code: str = "", **params: object) -> Line:
        return Line(written, hidden(key, value), verdict, target, Note(code, params) if code else None)

    off = value in (None, "", 0, False, [])
    if key not in DATA_KEYS:
        return line(UNSUPPORTED, code="import.why.unknown")
    if key in TOGETHER:
        return _together(part, key, value, line)
    if key in OFF:
        neutral, code = OFF[key]
        return line(UNDERSTOOD) if off or value in neutral else line(UNSUPPORTED, code=code)
    if key in CAPTIONS:
        return _caption_line(part, key, value, line)
    if key in BUCKETS or key in ("enable_bucket", "bucket_no_upscale"):
        return _bucket_line(key, value, line)
    if key in ("metadata_file", "in_json") and not off:
        return line(CHANGED, "datasets[].metadata", "import.why.metadata_table")
    if key == "conditioning_data_dir" and not off and not part.masked:
        return line(UNSUPPORTED, code="import.why.not_masked")
    if _is_passed_over(part, key, written, off):
        return line(CHANGED, code="import.why.unused_folder")
    return line(UNDERSTOOD, "" if off else PLACES.get(key, ""))


def _is_passed_over(part: DataPart, key: str, written: str, off: bool) -> bool:
    """Say whether a folder is passed over there: no repeats, named twice in its data set, or without a picture."""
    if key == "num_repeats":
        return off
    places = {s.where: s for dataset in part.datasets for s in dataset.subsets}
    subset = places.get(written.rpartition(".")[0])
    return key == "image_dir" and subset is not None and not subset.used


def _together(part: DataPart, key: str, value: Any, line: Callable[..., Line]) -> Line:
    if key == "resolution":
        size = size_of(value, key)
        areas = part.areas()
        target = f"resolution: {shown(areas if part.several_resolutions and len(areas) > 1 else areas[-1])}"
        if size is None:
            return line(UNDERSTOOD)
        if len({d.resolution for d in part.datasets}) > 1 and not part.several_resolutions:
            return line(CHANGED, target, "import.why.one_resolution")
        if size[0] != size[1]:
            return line(CHANGED, target, "import.why.area")
        return line(UNDERSTOOD, target)
    if ALIASES.get(key, key) == "batch_size":
        target = f"batch_size: {part.datasets[0].batch_size}"
        several = len({dataset.batch_size for dataset in part.datasets}) > 1
        return line(CHANGED, target, "import.why.one_batch_size") if several else line(UNDERSTOOD, target)
    if value in (None, ""):
        return line(UNDERSTOOD)
    if part.tables:
        return line(CHANGED, "datasets[].metadata", "import.why.caption_table")
    return line(UNDERSTOOD)


def _caption_line(part: DataPart, key: str, value: Any, line: Callable[..., Line]) -> Line:
    if value in (None, "", 0, False):
        return line(UNDERSTOOD)
    target = f"caption.{CAPTIONS[key]}: {shown(value)}"
    shuffled = any(subset.flag("shuffle_caption") for _, subset in part.used)
    if key in ("caption_prefix", "caption_suffix") and shuffled:
        return line(CHANGED, target, "import.why.prefix_shuffled")
    return line(UNDERSTOOD, target)


def _bucket_line(key: str, value: Any, line: Callable[..., Line]) -> Line:
    if key == "enable_bucket":
        return line(UNDERSTOOD) if to_flag(value) else line(CHANGED, code="import.why.always_buckets")
    if key == "bucket_no_upscale":
        return line(UNDERSTOOD) if to_flag(value) else line(CHANGED, code="import.why.never_enlarged")
    return line(CHANGED, code="import.why.own_buckets")
