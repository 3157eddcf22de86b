"""From what a model says to the caption: what is left out by which rule, what is put around it, how long it may be."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field

from lora_scripts.contracts import Label, Tag
from lora_scripts.data.captions import with_trigger
from lora_scripts.data.record import Note
from lora_scripts.labels.options import WORDING, LabelOptions
from lora_scripts.labels.policies import Policy
from lora_scripts.labels.sentences import Sentences, normal

_WORDLIKE = re.compile(r"[^\W\d_]{2}")
_ENDS = (".", "!", "?", "。", "！", "？")


@dataclass(frozen=True)
class Removed:
    """Words that are not in the caption, and the option or policy that took them out."""

    text: str
    rule: str


@dataclass(frozen=True)
class Written:
    """A caption and how it came about.

    Attributes:
        tags: the phrases that stand in it, as the model gave them.
        tokens: of the whole caption, without start and end.
    """

    text: str
    tags: tuple[Tag, ...] = ()
    removed: tuple[Removed, ...] = ()
    doubts: tuple[Note, ...] = ()
    tokens: int = 0


@dataclass(frozen=True)
class Rules:
    """What the options make of a label.

    Attributes:
        limit: tokens that the base reads.
        count: returns the tokens of each text.
        said: who speaks: the captioner's identity.
    """

    options: LabelOptions
    policy: Policy
    limit: int
    count: Callable[[Sequence[str]], list[int]]
    said: str = ""
    sentences: Sentences = field(init=False)

    def __post_init__(self) -> None:
        o = self.options
        object.__setattr__(self, "sentences", Sentences(self.policy, o.exclude, o.replacements, self.named, self.head))

    @property
    def head(self) -> str:
        """What calls the thing: trigger and class word."""
        return f"{self.options.trigger} {self.options.class_word}".strip()

    @property
    def named(self) -> str:
        """The class word, where captions call what is learned by it and do not describe it."""
        return self.options.class_word if self.options.kind in ("person", "thing") else ""

    @property
    def key(self) -> str:
        """Hex digits over the captioner and every rule: the same key and picture give the same caption."""
        wording = {name: getattr(self.options, name) for name in WORDING}
        parts = [self.said, wording, asdict(self.policy), self.limit, str(self.options.base or "")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, label: Label, *, frequent: AbstractSet[str] = frozenset(), standing: str | None = None) -> Written:
        """Return the caption.

        Args:
            frequent: phrases that too many captions would have, see `Policy.frequent`.
            standing: the caption that it is put behind or in front of; None where it stands alone.
        """
        tags, removed = self._chosen(label.tags, frequent, standing or "")
        sentence, out = self.sentences.clean(label.text)
        kind = f"--kind {self.options.kind}"
        removed += [Removed(text, kind if rule == "--kind" else rule) for text, rule in out]
        if standing and sentence and normal(sentence) in normal(standing):
            sentence = ""
        text, kept, sentence, cut = self._fitted(tags, sentence, standing)
        removed += [Removed(words, "--max-tokens") for words in cut]
        tokens = self.count([text])[0]
        doubts = list(label.doubts)
        if not label.text and not label.tags and not doubts:
            doubts.append(Note("label.doubt_nothing"))
        elif (label.text or label.tags) and not kept and not sentence and not standing:
            doubts.append(Note("label.doubt_empty"))
        if tokens > self.limit:
            doubts.append(Note("label.doubt_long", {"tokens": tokens, "limit": self.limit}))
        return Written(text, tuple(tag for tag, _ in kept), tuple(removed), tuple(doubts), tokens)

    def candidates(self, label: Label) -> set[str]:
        """Return the phrases of a label whose frequency in the set counts."""
        chosen, _ = self._chosen(label.tags, frozenset(), "")
        return {normal(text) for tag, text in chosen if tag.group in self.policy.frequent_groups}

    def _chosen(
        self, tags: Sequence[Tag], frequent: AbstractSet[str], standing: str
    ) -> tuple[list[tuple[Tag, str]], list[Removed]]:
        """Return the tags that stay with the words they are written as, and what is taken out."""
        options = self.options
        others = {normal(old): new for old, new in options.replacements.items()}
        seen = {normal(part) for part in re.split("[,\uff0c]", standing)} | set(map(normal, self._around()))
        kept: list[tuple[Tag, str]] = []
        removed: list[Removed] = []
        for tag in tags:
            text = self._spelled(tag.text)
            if normal(text) in others:
                removed.append(Removed(text, "--replace"))
                text = others[normal(text)]
            name = normal(text)
            rule = self._rule(name, tag, frequent)
            if not rule and (name in seen or says(standing, name)):
                rule = "repeated"
            elif not rule and options.max_tags is not None and len(kept) >= options.max_tags:
                rule = "--max-tags"
            if rule:
                removed.append(Removed(text, rule))
            elif text:
                seen.add(name)
                kept.append((tag, text))
        return kept, removed

    def _rule(self, name: str, tag: Tag, frequent: AbstractSet[str]) -> str:
        """Return what takes a phrase out, whatever stands beside it; "" where nothing does."""
        if tag.score < self.options.threshold:
            return "--threshold"
        if name in set(map(normal, self.options.exclude)):
            return "--exclude"
        if self._left_out(name, tag.group):
            return f"--kind {self.options.kind}"
        if name in frequent and tag.group in self.policy.frequent_groups:
            return f"--kind {self.options.kind}, in > {self.policy.frequent:.0%}"
        return ""

    def _left_out(self, name: str, group: str) -> bool:
        """Say whether the policy leaves a phrase out: its group, one of its words, or the thing's own name."""
        policy = self.policy
        if name in policy.keep:
            return False
        words = re.findall(r"[\w'-]+", name)
        own = self.options.kind == "thing" and re.search(rf"\b{re.escape(normal(self.named))}\b", name)
        return group in policy.groups or bool(own) or any(word in policy.words for word in words)

    def _spelled(self, text: str) -> str:
        """Return a tag with spaces for underscores, unless it is a face such as ^_^."""
        text = " ".join(text.split())
        return text.replace("_", " ") if self.options.underscores == "spaces" and _WORDLIKE.search(text) else text

    def _around(self) -> list[str]:
        return [text for text in (self.head, self.options.trigger, self.options.class_word) if text]

    def _fitted(
        self, tags: list[tuple[Tag, str]], sentence: str, standing: str | None
    ) -> tuple[str, list[tuple[Tag, str]], str, list[str]]:
        """Take phrases off the end, then words of the sentence, until the caption fits; a person's words stay."""
        kept, cut, over = list(tags), list[str](), list[str]()
        while True:
            text = self._framed(
                self._joined([*([sentence] if sentence else []), *(text for _, text in kept)]), standing
            )
            if (not kept and not sentence) or self.count([text])[0] <= self.limit:
                return text, kept, sentence, [*cut, *([" ".join(over)] if over else [])]
            if kept:
                cut.append(kept.pop()[1])
            else:
                sentence, word = sentence.rpartition(" ")[::2]
                sentence = sentence.rstrip(" ,;:")
                over.insert(0, word)

    def _joined(self, parts: Sequence[str]) -> str:
        text = ""
        for part in parts:
            gap = " " if text.endswith(_ENDS) else self.options.separator
            text = f"{text}{gap}{part}" if text else part
        return text

    def _framed(self, body: str, standing: str | None) -> str:
        """Put what stands there, prefix, suffix and head around the words; what is there already is not added."""
        options = self.options
        if standing:
            trimmed = standing.strip().rstrip(",\uff0c").rstrip()
            new, old = (body, trimmed) if options.existing == "prepend" else (trimmed, body)
            body = self._joined([part for part in (new, old) if part]) if body else standing.strip()
        there = body.startswith(options.prefix) or (standing and says(standing, options.prefix))
        prefix = "" if there else options.prefix
        suffix = "" if body.endswith(options.suffix) else options.suffix
        body = " ".join(part for part in (prefix, body, suffix) if part)
        known = options.trigger or options.class_word
        if not known or with_trigger(body, known) == body:
            return body
        return f"{self.head}{options.separator}{body}" if body else self.head


def says(caption: str, phrase: str) -> bool:
    """Say whether a caption holds a phrase as words of its own."""
    name = normal(phrase)
    return bool(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", normal(caption)) is not None


def counted(rules: Rules, labels: Iterable[Label]) -> frozenset[str]:
    """Return the phrases that more than the policy's share of these labels would put into captions."""
    counts: Counter[str] = Counter()
    total = 0
    for label in labels:
        total += 1
        counts.update(rules.candidates(label))
    return frozenset(name for name, n in counts.items() if n > rules.policy.frequent * total)
