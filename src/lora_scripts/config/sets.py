"""What is wrong between the keys that say what to learn from, though each is right on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lora_scripts.config.schema import OFF, CaptionSection, RunConfig
from lora_scripts.errors import Problem

Where = Callable[[tuple[str, ...]], str]


def problems(config: RunConfig, where: Where) -> Iterator[Problem]:
    """Yield what contradicts itself or would silently do nothing.

    Args:
        where: the place in the file of a dotted path.
    """
    yield from _tags(config.caption, ("caption",), where)
    for i, section in enumerate(config.datasets):
        at = ("datasets", str(i))
        if section.visits is not None and "repeats" in section.model_fields_set:
            values: dict[str, object] = {"visits": section.visits, "repeats": section.repeats}
            yield Problem("config.visits_and_repeats", values, where((*at, "visits")))
        if section.caption is not None:
            yield from _tags(section.caption, (*at, "caption"), where)
        if section.regularisation and section.caption is not None and section.caption.trigger:
            place = where((*at, "caption", "trigger"))
            yield Problem("config.regularisation_trigger", {"trigger": section.caption.trigger}, place)
    regularising = [section.regularisation for section in config.datasets]
    if regularising and all(regularising):
        yield Problem("config.only_regularisation", {"count": len(regularising)}, where(("datasets",)))
    if config.prior == "base" and not any(regularising):
        yield Problem("config.prior_alone", {}, where(("prior",)))
    masks = [config.mask, *(section.mask for section in config.datasets)]
    if config.mask_floor and all(mask in (None, OFF[0]) for mask in masks):
        yield Problem("config.mask_floor_alone", {"value": f"{config.mask_floor:g}"}, where(("mask_floor",)))


def _tags(rules: CaptionSection, at: tuple[str, ...], where: Where) -> Iterator[Problem]:
    """Yield what is wrong with rules for single tags."""
    key = ".".join(at)
    kept = {tag.strip().casefold() for tag in rules.keep_tags}
    for name, tags in (("keep_tags", rules.keep_tags), ("tag_chances", tuple(rules.tag_chances))):
        for tag in tags:
            if not tag.strip() or "," in tag or "\uff0c" in tag:
                yield Problem("config.no_tag", {"key": f"{key}.{name}", "value": tag}, where((*at, name)))
            elif name == "tag_chances" and tag.strip().casefold() in kept:
                yield Problem("config.tag_both", {"key": key, "tag": tag}, where((*at, name)))
