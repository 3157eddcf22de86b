"""The masks of a folder of pictures: which file belongs to which picture, and whether they can be used.

A mask has the picture's relative name without suffix, in the mask folder, or that name with "-masklabel" behind it
(as OneTrainer names them); a mask folder may be the pictures' own, or lie in it.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_scripts.data.caption_files import listed
from lora_scripts.data.folder import walk
from lora_scripts.data.masks import ALPHA
from lora_scripts.data.record import Dataset, Note
from lora_scripts.errors import DataError

LABEL = "-masklabel"


@dataclass(frozen=True)
class MaskFiles:
    """What a folder's files are to masks.

    Attributes:
        pictures: the folder's pictures that are no masks.
        files: mask files by picture.
        notes: mask files that are not used.
    """

    pictures: Sequence[str]
    files: Mapping[str, Path]
    notes: Sequence[Note]


def sort_out(dataset: Dataset, names: Sequence[str]) -> MaskFiles:
    """Tell pictures from masks among a folder's picture files, and find each picture's mask.

    Raises:
        DataError: the mask folder is absent, pictures have no mask, or one has two.
    """
    stems = {_stem(name) for name in names}
    inside = _inside(dataset)
    labels = [name for name in names if _labelled(name) in stems]
    below = {name for name in names if inside and name.startswith(inside)}
    pictures = [name for name in names if name not in below and name not in {*labels}]
    if dataset.mask is None or dataset.mask == ALPHA:
        notes = [Note("data.mask_files_unused", listed(labels))] if labels else []
        return MaskFiles(pictures, {}, notes)
    folder = Path(dataset.mask)
    if not folder.is_dir():
        raise DataError("data.mask_folder", path=folder)
    own = folder.resolve() == dataset.path.resolve()
    lying = defaultdict(list)
    for name in labels if own else walk(folder).pictures:
        lying[_labelled(name) or _stem(name)].append(name)
    absent = [name for name in pictures if _stem(name) not in lying]
    if absent:
        raise DataError("data.masks_absent", path=folder, found=len(pictures), **listed(absent))
    files = {}
    for name in pictures:
        first, *others = lying[_stem(name)]
        if others:
            raise DataError("data.mask_twice", path=folder, picture=name, first=first, second=others[0])
        files[name] = folder / first
    used = {*files.values()}
    idle = [name for each in lying.values() for name in each if folder / name not in used]
    notes = [Note("data.mask_files_unused", listed(sorted(idle)))] if idle else []
    return MaskFiles(pictures, files, notes)


def _stem(name: str) -> str:
    """A name without suffix, as it is compared: spellings that differ in case or Unicode form only are one."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix(""))).casefold()


def _labelled(name: str) -> str:
    """What a mask beside its picture is called after, else nothing."""
    stem = _stem(name)
    return stem.removesuffix(LABEL) if stem.endswith(LABEL) else ""


def _inside(dataset: Dataset) -> str:
    """Return the beginning of the names of masks that lie in the pictures' folder, such as "masks/", else nothing."""
    if dataset.mask is None or dataset.mask == ALPHA:
        return ""
    folder, home = Path(dataset.mask).resolve(), dataset.path.resolve()
    return f"{folder.relative_to(home).as_posix()}/" if folder != home and folder.is_relative_to(home) else ""
