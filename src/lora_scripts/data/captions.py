"""What a caption becomes on one visit: which one, its parts shuffled, the trigger in front, or dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from lora_scripts.data.record import CaptionRules


def draw(captions: Sequence[str], rules: CaptionRules, random: Random, flip: bool) -> tuple[str, bool]:
    """Deal one visit of a picture.

    The same four numbers are drawn whatever the rules say (caption, dropout, flip, order), so that turning one rule
    on does not change what the others deal.

    Args:
        captions: what the picture may be shown with; non-empty.
        rules: see `CaptionRules`. The empty caption of `dropout` is without the trigger.
        random: the visit's own generator.
        flip: whether the picture may be mirrored; half of the visits are.

    Returns:
        (caption, mirrored). With no rule on, a caption is returned letter for letter.
    """
    which, dropped, mirrored = random.random(), random.random(), random.random()
    order = Random(random.getrandbits(64))
    caption = captions[int(which * len(captions))]
    if rules.shuffle:
        caption = _shuffled(caption, rules.keep_tokens, order)
    caption = with_trigger(caption, rules.trigger)
    return "" if dropped < rules.dropout else caption, flip and mirrored < 0.5


def with_trigger(caption: str, trigger: str) -> str:
    """Put the trigger in front of a caption that does not contain it as a word of its own, in any case."""
    if not trigger:
        return caption
    # Scripts without spaces have no word borders to ask for.
    before = r"(?<![A-Za-z0-9_])" if re.match(r"[A-Za-z0-9_]", trigger) else ""
    after = r"(?![A-Za-z0-9_])" if re.search(r"[A-Za-z0-9_]\Z", trigger) else ""
    if re.search(before + re.escape(trigger) + after, caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _shuffled(caption: str, keep: int, order: Random) -> str:
    """Shuffle the parts behind the first `keep`; Chinese commas count too."""
    parts = [part.strip() for part in re.split("[,\uff0c]", caption)]
    tail = parts[keep:]
    if len(tail) < 2:
        return caption
    order.shuffle(tail)
    return ", ".join(part for part in [*parts[:keep], *tail] if part)
