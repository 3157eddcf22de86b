"""Pictures with captions from folders: every picture decoded once, damaged ones set aside with their reason."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from lora_scripts.data import buckets, masks
from lora_scripts.data.caption_files import Assigned, assign, listed, source_notes
from lora_scripts.data.captions import tags_of
from lora_scripts.data.decode import Decoded, decode_bytes, read_bytes, read_header
from lora_scripts.data.folder import no_pictures, sentences, walk
from lora_scripts.data.readers._masks import sort_out
from lora_scripts.data.record import AS_TRAINED, Dataset, Dropped, Example, Note, PictureExample, Scan, Sizes
from lora_scripts.errors import ConfigError, DataError

MAX_THREADS = 4
"""A picture of the largest allowed size takes some 500 MB while it is decoded."""
LEAST_KEPT = 0.5
"""A picture that would lose more than this share to the crop is not trained on."""
_NOTED_CROP = 0.75
_SHOWN_BUCKETS = 12


@dataclass(frozen=True)
class _Picture:
    """A picture that decodes: its name inside the data set, hash, displayed size, mask, and what was found odd."""

    name: str
    path: Path
    sha256: str
    size: tuple[int, int]
    first_of_several: bool = False
    profile_ignored: bool = False
    mask: Path | str | None = None
    mask_sha256: str = ""
    cover: masks.Cover | None = None


@dataclass(frozen=True)
class _Part:
    """One data set's share of a scan."""

    found: int
    pictures: Sequence[_Picture]
    assigned: Mapping[str, Assigned]
    dropped: Sequence[Dropped]
    notes: Sequence[Note]


def read(
    datasets: Sequence[Dataset],
    sizes: Sizes,
    *,
    max_bad_fraction: float = 0.1,
    known: Mapping[str, tuple[int, int]] | None = None,
) -> Scan:
    """Find, decode and caption the pictures of every data set.

    Args:
        datasets: folders; sub-folders are read too.
        sizes: a picture gets one example a resolution, but only one a bucket.
        max_bad_fraction: share of a folder's pictures, 0 to 1, that may be unreadable before the run is refused.
        known: displayed size by sha256 of pictures that an earlier scan has decoded; only their header is read.

    Returns:
        Examples sorted by id, "<data set>/<file>@<bucket>"; the sentence of each dropped file holds its path.

    Raises:
        DataError: a folder without usable pictures, captions that cannot be trusted, or too many damaged pictures.
        ConfigError: a resolution below the base's smallest step.
    """
    for resolution in sizes.resolutions:
        if resolution < sizes.multiple:
            raise ConfigError("data.resolution_too_small", resolution=resolution, multiple=sizes.multiple)
    parts = [_read_folder(dataset, max_bad_fraction, known or {}) for dataset in datasets]
    examples: list[PictureExample] = []
    dropped = [one for part in parts for one in part.dropped]
    for index, (dataset, part) in enumerate(zip(datasets, parts, strict=True)):
        made, unfit = _examples(index, dataset, part, sizes)
        if not made:
            raise DataError("data.none_usable", path=dataset.path, reasons=sentences([*part.dropped, *unfit]))
        examples += made
        dropped += unfit
    examples.sort(key=lambda example: example.id)
    found = sum(part.found for part in parts)
    notes = [*_found_notes(parts), *_picture_notes(parts), *_bucket_notes(examples, sizes)]
    notes += [*_rule_notes(datasets, parts), *_turn_notes(datasets, parts)]
    if dropped:
        notes.append(Note("data.dropped", {"count": len(dropped)}))
    return Scan(cast("list[Example]", examples), found, tuple(dropped), tuple(notes))


def _read_folder(dataset: Dataset, max_bad_fraction: float, known: Mapping[str, tuple[int, int]]) -> _Part:
    folder = walk(dataset.path)
    if not folder.pictures:
        raise no_pictures(dataset.path, folder)
    # Captions first: what is wrong with them is told at once, before minutes of decoding.
    sorted_out = sort_out(dataset, folder.pictures)
    if not sorted_out.pictures:
        raise DataError("data.only_masks", path=dataset.path, mask=dataset.mask)
    assignment = assign(dataset, sorted_out.pictures, folder.others)
    notes = [*assignment.notes, *_folder_notes(assignment.pictures), *sorted_out.notes]
    names = [name for name in sorted_out.pictures if assignment.pictures[name].repeats > 0]
    if not names:
        raise DataError("data.all_folders_off", path=dataset.path)
    alpha = masks.ALPHA if dataset.mask == masks.ALPHA else None
    results = _decode_all([(name, dataset.path / name, sorted_out.files.get(name, alpha)) for name in names], known)
    bad = [result for result in results if isinstance(result, Dropped)]
    if len(bad) > max_bad_fraction * len(names):
        counts = {"bad": len(bad), "found": len(names), "allowed": f"{max_bad_fraction:.0%}"}
        raise DataError("data.too_many_bad", path=dataset.path, **counts, reasons=sentences(bad))
    strays = [name for name in folder.others if name not in assignment.used]
    if strays:
        notes.append(Note("data.other_files", listed(strays)))
    pictures = [result for result in results if isinstance(result, _Picture)]
    notes += _mask_notes(dataset, pictures)
    return _Part(len(sorted_out.pictures), pictures, assignment.pictures, [*folder.skipped, *bad], notes)


def _folder_notes(assigned: Mapping[str, Assigned]) -> list[Note]:
    """Say what the numbers of kohya folders do; a folder without words has a number all the same."""
    counts = Counter((name.partition("/")[0], one.repeats) for name, one in assigned.items() if one.repeats != 1)
    notes = []
    for (folder, repeats), count in sorted(counts.items()):
        params = {"folder": folder, "repeats": repeats, "count": count}
        notes.append(Note("data.folder_repeats", params) if repeats else Note("data.folder_off", params))
    return notes


def _mask_notes(dataset: Dataset, pictures: Sequence[_Picture]) -> list[Note]:
    """Say how many pictures have a mask.

    Raises:
        DataError: masks are not of their pictures' sizes.
    """
    if dataset.mask is None:
        return []
    wrong = [
        f"{p.name} {p.cover.size[0]}x{p.cover.size[1]} / {p.size[0]}x{p.size[1]}"
        for p in pictures
        if p.cover is not None and p.cover.size != p.size
    ]
    if wrong:
        raise DataError("data.mask_sizes", path=dataset.mask, **listed(wrong))
    count = sum(picture.mask is not None for picture in pictures)
    notes = [Note("data.masked", {"count": count, "source": dataset.mask})]
    whole = [picture.name for picture in pictures if picture.mask is None]
    return [*notes, Note("data.masks_opaque", listed(whole))] if whole else notes


def _decode_all(
    files: Sequence[tuple[str, Path, Path | str | None]], known: Mapping[str, tuple[int, int]]
) -> list[_Picture | Dropped]:
    """Decode every picture and its mask once, a few at a time, in order."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    try:
        # Pillow warns of oddities in metadata that do not touch the pixels, by lines of its own code.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            return list(pool.map(lambda file: _decode_one(file[0], file[1], file[2], known), files))
    finally:
        # An interrupt need not wait for the rest of a large folder.
        pool.shutdown(cancel_futures=True)


def _decode_one(
    name: str, path: Path, mask: Path | str | None, known: Mapping[str, tuple[int, int]]
) -> _Picture | Dropped:
    """Decode a picture, and then its mask: without one that can be used there is no training.

    Raises:
        DataError: the mask's file cannot be read.
    """
    try:
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        if digest in known and mask != masks.ALPHA:
            decoded = None
            picture = _Picture(name, path, digest, known[digest], read_header(data, path).first_of_several)
        else:
            decoded = decode_bytes(data, path)
            odd = decoded.first_of_several, decoded.profile_ignored
            picture = _Picture(name, path, digest, decoded.picture.size, *odd)
    except DataError as error:
        return Dropped(path, error.code, error.params)
    return picture if mask is None else _with_mask(picture, decoded, mask)


def _with_mask(picture: _Picture, decoded: Decoded | None, mask: Path | str) -> _Picture:
    """Add what is to be known of its mask; a picture that is opaque all over has none."""
    if not isinstance(mask, Path):
        opacity = masks.transparency(decoded) if decoded is not None else None
        return picture if opacity is None else replace(picture, mask=mask, cover=masks.cover(opacity))
    data = read_bytes(mask)
    found = masks.cover(masks.from_bytes(data, mask))
    return replace(picture, mask=mask, mask_sha256=hashlib.sha256(data).hexdigest(), cover=found)


def _examples(index: int, dataset: Dataset, part: _Part, sizes: Sizes) -> tuple[list[PictureExample], list[Dropped]]:
    """Make one example for each bucket of each picture.

    Raises:
        DataError: masks let nothing of a picture count.
    """
    examples: list[PictureExample] = []
    unfit: list[Dropped] = []
    black: list[str] = []
    deal = None
    if dataset.visits is not None:
        # Sets that are visited as often as what is learned from are so all together.
        as_trained = dataset.visits == AS_TRAINED
        deal = (AS_TRAINED, None) if as_trained else (str(index), int(dataset.visits))
    for picture in part.pictures:
        chosen = {buckets.choose(picture.size, resolution, sizes.multiple) for resolution in sizes.resolutions}
        fitting = {bucket for bucket in chosen if bucket and buckets.kept(picture.size, bucket) >= LEAST_KEPT}
        if not fitting:
            unfit.append(_unfit(picture, sizes.multiple, too_small=chosen == {None}))
            continue
        assigned = part.assigned[picture.name]
        if picture.cover is not None and not all(picture.cover.reaches(bucket) for bucket in fitting):
            black.append(picture.name)
        for bucket in sorted(fitting):
            example = PictureExample(
                id=f"{index}/{picture.name}@{bucket[0]}x{bucket[1]}",
                path=picture.path,
                sha256=picture.sha256,
                captions=assigned.captions,
                size=picture.size,
                bucket=bucket,
                caption_rules=dataset.captions,
                flip=dataset.flip,
                repeats=dataset.repeats * assigned.repeats,
                weight=dataset.weight,
                caption_weights=assigned.weights,
                mask=picture.mask,
                mask_sha256=picture.mask_sha256,
                regularisation=dataset.regularisation,
                deal=deal,
            )
            examples.append(example)
    if black:
        raise DataError("data.masks_black", path=dataset.mask, **listed(black))
    return examples, unfit


def _unfit(picture: _Picture, multiple: int, *, too_small: bool) -> Dropped:
    size = {"path": picture.path, "width": picture.size[0], "height": picture.size[1]}
    if too_small:
        return Dropped(picture.path, "data.picture_too_small", {**size, "multiple": multiple})
    return Dropped(picture.path, "data.picture_too_long", {**size, "aspect": buckets.MAX_ASPECT})


def _found_notes(parts: Sequence[_Part]) -> list[Note]:
    """Say how many pictures there are and where their captions come from."""
    used = [part.assigned[picture.name] for part in parts for picture in part.pictures]
    notes = [Note("data.pictures_found", {"count": sum(part.found for part in parts)}), *source_notes(used)]
    several = sum(len(one.captions) > 1 for one in used)
    if several:
        notes.append(Note("data.several_captions", {"count": several}))
    empty = [p.name for part in parts for p in part.pictures if not any(part.assigned[p.name].captions)]
    if empty:
        notes.append(Note("data.without_caption", listed(empty)))
    return notes + [note for part in parts for note in part.notes]


def _picture_notes(parts: Sequence[_Part]) -> list[Note]:
    """Say what is odd about pictures that are trained on."""
    pictures = [picture for part in parts for picture in part.pictures]
    by_content = defaultdict(list)
    for picture in pictures:
        by_content[picture.sha256].append(picture.name)
    same = [" = ".join(names) for names in by_content.values() if len(names) > 1]
    notes = []
    if same:
        notes.append(Note("data.duplicates", {**listed(same), "count": len(pictures) - len(by_content)}))
    animated = [picture.name for picture in pictures if picture.first_of_several]
    if animated:
        notes.append(Note("data.first_frame", listed(animated)))
    unprofiled = [picture.name for picture in pictures if picture.profile_ignored]
    if unprofiled:
        notes.append(Note("data.profile_ignored", listed(unprofiled)))
    return notes


def _rule_notes(datasets: Sequence[Dataset], parts: Sequence[_Part]) -> list[Note]:
    """Name the tags and separators that have a rule and stand in no caption that the rule is for."""
    tags: dict[str, str] = {}
    separators: dict[str, None] = {}
    seen: set[str] = set()
    for dataset, part in zip(datasets, parts, strict=True):
        rules = dataset.captions
        ruled = {tag.strip().casefold(): tag for tag in (*rules.keep_tags, *rules.tag_chances)}
        tags |= ruled
        separators |= dict.fromkeys([rules.keep_separator] if rules.keep_separator else [])
        captions = {text for picture in part.pictures for text in part.assigned[picture.name].captions}
        if ruled:
            seen |= ruled.keys() & {tag.casefold() for text in captions for tag in tags_of(text, rules)}
        if any(rules.keep_separator in text for text in captions):
            seen.add(rules.keep_separator)
    unseen = [tag for name, tag in tags.items() if name not in seen]
    notes = [Note("data.tags_unseen", listed(unseen))] if unseen else []
    return notes + [Note("data.separator_unseen", {"separator": mark}) for mark in separators if mark not in seen]


def _turn_notes(datasets: Sequence[Dataset], parts: Sequence[_Part]) -> list[Note]:
    """Say which data sets are visited in turn."""
    notes = []
    for dataset, part in zip(datasets, parts, strict=True):
        params = {"path": dataset.path, "count": len(part.pictures)}
        if dataset.visits == AS_TRAINED:
            notes.append(Note("data.as_trained", params))
        elif dataset.visits is not None:
            notes.append(Note("data.dealt", {**params, "visits": dataset.visits}))
    return notes


def _bucket_notes(examples: Sequence[PictureExample], sizes: Sizes) -> list[Note]:
    """Say into which buckets the pictures go, which are small, and which lose much to the crop."""
    counts = Counter(example.bucket for example in examples)
    shown = [f"{w}x{h}: {n}" for (w, h), n in counts.most_common(_SHOWN_BUCKETS)]
    rest = ["..."] if len(counts) > _SHOWN_BUCKETS else []
    notes = [Note("data.sizes", {"count": len(counts), "buckets": ", ".join(shown + rest)})]
    if len(sizes.resolutions) > 1:
        pictures = len({example.id.rpartition("@")[0] for example in examples})
        at = ", ".join(map(str, sizes.resolutions))
        notes.append(Note("data.resolutions", {"resolutions": at, "count": len(examples), "pictures": pictures}))
    for resolution in sizes.resolutions:
        small = {example.id.rpartition("@")[0] for example in examples if _area(example.size) < resolution**2}
        if small:
            names = [name.partition("/")[2] for name in sorted(small)]
            notes.append(Note("data.smaller", {**listed(names), "resolution": resolution}))
    cropped = [example.id for example in examples if buckets.kept(example.size, example.bucket) < _NOTED_CROP]
    if cropped:
        notes.append(Note("data.cropped", listed([example.partition("/")[2] for example in cropped])))
    return notes


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
