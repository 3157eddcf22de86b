"""A kohya project's data sets as its own tools see them: folders, the settings in force for each, pictures, sizes.

A setting is looked for in the subset, then in its data set, in [general] and in the training file; else sd-scripts'
default counts.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.data.caption_tables import MAX_TABLE_BYTES, read_text
from lora_scripts.data.decode import FORMATS
from lora_scripts.errors import ConfigError, DataError
from lora_scripts.importing.kohya_steps import BucketRule, Size, batches, regularisation_visits
from lora_scripts.importing.sources import Source, numbered_folders
from lora_scripts.importing.translation import shown, to_flag, to_whole

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
# Read there with further libraries, and not at all here.
FOREIGN = frozenset({".avif", ".jxl"})
# The training file's names for settings of data sets.
ALIASES = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"}


@dataclass(frozen=True)
class Picture:
    """A picture's file, its stored size (None where it cannot be read), and whether EXIF turns it when it is shown."""

    path: Path
    size: Size | None
    turned: bool = False


@dataclass(frozen=True)
class Subset:
    """One folder.

    Attributes:
        where: its place in the file, "datasets[0].subsets[1]", or the folder's path.
        options: the settings in force.
        metadata: the file of captions of the fine-tuning style, or None.
        duplicate: of an earlier folder of the same data set, which is the one that counts.
    """

    where: str
    folder: Path
    options: Mapping[str, Any]
    pictures: Sequence[Picture] = ()
    metadata: Path | None = None
    duplicate: bool = False

    @property
    def repeats(self) -> int:
        """Visits of each picture an epoch."""
        return to_whole(self.options.get("num_repeats", 1), f"{self.where}.num_repeats") or 0

    @property
    def regularisation(self) -> bool:
        """Whether it only keeps the base from forgetting."""
        return to_flag(self.options.get("is_reg", False))

    @property
    def used(self) -> bool:
        """Whether it is trained on there."""
        return self.repeats > 0 and bool(self.pictures) and not self.duplicate

    def flag(self, key: str) -> bool:
        """Return whether a switch is on."""
        return to_flag(self.options.get(key, False))


@dataclass(frozen=True)
class KohyaDataset:
    """Folders that share a resolution, a batch size and buckets."""

    where: str
    options: Mapping[str, Any]
    subsets: Sequence[Subset] = field(default_factory=tuple)

    @property
    def batch_size(self) -> int:
        """Pictures a batch."""
        return max(1, to_whole(self.options.get("batch_size", 1), f"{self.where}.batch_size") or 1)

    @property
    def resolution(self) -> Size:
        """(width, height)."""
        return size_of(self.options.get("resolution"), f"{self.where}.resolution") or (512, 512)

    @property
    def rule(self) -> BucketRule:
        """How pictures get their size."""

        def whole(key: str, default: int) -> int:
            return max(1, to_whole(self.options.get(key, default), f"{self.where}.{key}") or default)

        return BucketRule(
            self.resolution,
            to_flag(self.options.get("enable_bucket", False)),
            whole("min_bucket_reso", 256),
            whole("max_bucket_reso", 1024),
            whole("bucket_reso_steps", 64),
            to_flag(self.options.get("bucket_no_upscale", False)),
        )

    def visits(self) -> dict[str, int]:
        """Return the visits an epoch of each regularisation folder, by its place."""
        found: dict[str, int] = {}
        for subset, picture_visits in self._regularisation():
            found[subset.where] = found.get(subset.where, 0) + picture_visits[1]
        return found

    def batches(self, held: float = 0.0) -> int:
        """Return the batches an epoch; `held` is the share of each folder that is only measured."""
        seen: list[tuple[Size, int]] = []
        for subset in self.subsets:
            if subset.used and not subset.regularisation:
                seen += [(picture.size, subset.repeats) for picture in kept(subset, held) if picture.size]
        seen += [
            (picture.size, visits) for _, (picture, visits) in self._regularisation(held) if picture.size and visits
        ]
        return batches(seen, self.rule, self.batch_size)

    def _regularisation(self, held: float = 0.0) -> list[tuple[Subset, tuple[Picture, int]]]:
        used = [subset for subset in self.subsets if subset.used]
        training = sum(s.repeats * len(kept(s, held)) for s in used if not s.regularisation)
        pictures = [(s, picture) for s in used if s.regularisation for picture in kept(s, held)]
        visits = regularisation_visits(training, [s.repeats for s, _ in pictures])
        return [(s, (picture, one)) for (s, picture), one in zip(pictures, visits, strict=True)]


def kept(subset: Subset, held: float) -> Sequence[Picture]:
    """Return what is trained on of a folder of which a share is held out."""
    return subset.pictures[: math.ceil(len(subset.pictures) * (1 - held))] if held else subset.pictures


def size_of(value: Any, key: str) -> Size | None:
    """Read a resolution: 512, "512", "512,768" or [512, 768].

    Raises:
        ConfigError: it is none.
    """
    if value in (None, ""):
        return None
    parts = value if isinstance(value, list) else str(value).split(",")
    sides = [to_whole(part, key) or 0 for part in parts]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ConfigError("import.bad_value", key=key, value=shown(value))
    return sides[0], sides[-1]


def read_datasets(source: Source, training: Mapping[str, Any]) -> list[KohyaDataset]:
    """Return the project's data sets, with every picture's size.

    Args:
        training: the training file's settings by name.

    Raises:
        ConfigError, DataError: a setting that is none, a folder that is not there, nothing to train on.
    """
    base = {ALIASES.get(key, key): value for key, value in training.items() if value not in (None, "")}
    found: list[KohyaDataset] = []
    for number, one in enumerate(_described(source, base)):
        where = f"datasets[{number}]" if source.data is not None else ""
        general = source.data.get("general") if source.data is not None else None
        options = {**base, **_given(general), **_given(one)}
        subsets: list[Subset] = []
        for place, inner in enumerate(tables_of(one, where)):
            at = f"{where}.subsets[{place}]" if where else str(inner["image_dir"])
            subsets.append(_subset(source, at, {**options, **_given(inner)}, inner, subsets))
        found.append(KohyaDataset(where, options, subsets))
    if not any(subset.used for dataset in found for subset in dataset.subsets):
        raise DataError("import.no_pictures", path=source.path)
    return found


def tables_of(dataset: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return a data set's subsets.

    Raises:
        ConfigError: they are no list of tables.
    """
    subsets = dataset.get("subsets", [])
    if not isinstance(subsets, list) or not all(isinstance(one, dict) for one in subsets):
        raise ConfigError("import.bad_value", key=f"{where}.subsets", value=shown(subsets))
    return subsets


def _given(table: Any) -> dict[str, Any]:
    items = table.items() if isinstance(table, Mapping) else ()
    return {key: value for key, value in items if value is not None and key != "subsets"}


def _described(source: Source, training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the data sets as the file describes them, or as the folders do."""
    if source.data is not None:
        return list(source.data["datasets"])
    named = training.get("train_data_dir")
    if source.trains and named is None:
        raise ConfigError("import.no_data", path=source.path)
    root = source.find(str(named)) if source.trains else source.path
    if not root.is_dir():
        raise DataError("import.no_folder", path=root, key="train_data_dir")
    if training.get("in_json") is not None:
        return [{"subsets": [{"image_dir": str(root), "metadata_file": str(training["in_json"])}]}]
    subsets = _numbered(root, False)
    if not subsets:
        inside = sorted(p.name for p in root.iterdir())[:5]
        raise DataError("import.no_numbered", path=root, found=", ".join(inside) or "-")
    if training.get("reg_data_dir") is not None:
        other = source.find(str(training["reg_data_dir"]))
        if not other.is_dir():
            raise DataError("import.no_folder", path=other, key="reg_data_dir")
        subsets += _numbered(other, True)
    return [{"subsets": subsets}]


def _numbered(root: Path, regularisation: bool) -> list[dict[str, Any]]:
    return [
        {"image_dir": str(folder), "num_repeats": repeats, "class_tokens": words, "is_reg": regularisation}
        for folder, repeats, words in numbered_folders(root)
    ]


def _subset(
    source: Source, where: str, options: Mapping[str, Any], own: Mapping[str, Any], earlier: Sequence[Subset]
) -> Subset:
    named = own.get("image_dir")
    metadata = source.find(str(own["metadata_file"])) if own.get("metadata_file") else None
    if named is None and metadata is None:
        raise ConfigError("import.no_image_dir", where=where)
    folder = source.find(str(named)) if named is not None else metadata.parent if metadata else source.folder
    if not folder.is_dir():
        raise DataError("import.no_folder", path=folder, key=f"{where}.image_dir")
    if metadata is not None and not metadata.is_file():
        raise DataError("import.no_folder", path=metadata, key=f"{where}.metadata_file")
    duplicate = any((one.folder, one.metadata) == (folder, metadata) for one in earlier)
    least = size_of(options.get("skip_image_resolution"), f"{where}.skip_image_resolution")
    pictures = [picture for picture in pictures_of(folder) if not _skipped(picture, least)]
    if metadata is not None:
        listed = read_metadata(metadata)
        pictures = [picture for picture in pictures if picture.path.stem in listed]
    if to_flag(own.get("is_reg", False)) and "conditioning_data_dir" not in own:
        # A mask folder for all is of what is learned.
        options = {key: value for key, value in options.items() if key != "conditioning_data_dir"}
    return Subset(where, folder, options, pictures, metadata, duplicate)


def read_metadata(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return what a fine-tuning metadata file says of each picture, by file name without ending.

    Raises:
        DataError: it is not one.
    """
    try:
        tree = json.loads(read_text(path, MAX_TABLE_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError("import.bad_metadata", path=path, reason=str(error).split("\n")[0][:200]) from error
    if not isinstance(tree, dict):
        raise DataError("import.bad_metadata", path=path, reason=type(tree).__name__)
    return {Path(str(key)).stem: value for key, value in tree.items() if isinstance(value, dict)}


def _skipped(picture: Picture, least: Size | None) -> bool:
    if least is None or picture.size is None:
        return False
    return picture.size[0] * picture.size[1] <= least[0] * least[1]


def pictures_of(folder: Path) -> list[Picture]:
    """Return the pictures directly in a folder, in the order of their names."""
    return [_picture(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES and path.is_file()]


def _picture(path: Path) -> Picture:
    """Read a picture's header; what cannot be read is told at training, by name."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return Picture(path, image.size, image.getexif().get(0x0112, 1) in (5, 6, 7, 8))
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, Image.DecompressionBombError):
        return Picture(path, None)
