"""CLIP with banks of phrases: looks at a picture once and chooses, group by group, what fits best.

Within a group, shares are a softmax over its phrases at the model's own temperature; they compare phrases of one group
only and are no probabilities. The caption is then grown greedily: of all candidates the phrase that brings the mean of
the chosen phrases closest to the picture, as long as it gains enough and its group has room. The mean of embeddings
stands for the embedding of the joined text, which is what keeps a picture at one pass of the image tower; the option
`chain` encodes the joined texts instead.

Without a model named and none on this machine, the embedded labeller speaks: it knows small drawings on a plain ground
by name and measures colours and composition for everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.contracts import Label, Tag
from lora_scripts.data.record import Note

if TYPE_CHECKING:
    import numpy
    from PIL import Image

    from lora_scripts.captioners._banks import Embedded
    from lora_scripts.captioners._towers import Towers

NEEDS_MODEL = False
CANDIDATES = 20
# Cosines are rounded before they are compared, so that the size of a batch decides nothing.
DIGITS = 5
UNSURE = 0.35
# Below this the embedded labeller gives no name; half of the names it gives at this are right.
NAMED, NAME_UNSURE = 0.25, 0.6
VERSION = 1


class Config(BaseModel):
    """Its own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phrases: tuple[Path, ...] = ()
    groups: tuple[str, ...] = ()
    at_most: dict[str, Annotated[int, Field(ge=0)]] = {}
    share: float = Field(0.12, ge=0, le=1)
    chain: bool = False
    gain: float = Field(0.002, ge=0, le=1)
    most: int = Field(10, ge=1, le=100)
    batch: int = Field(16, ge=1, le=1024)


def build(config: Config, model: str | None, device: str) -> Any:
    """Load the model; see `contracts.Captioner`."""
    from lora_scripts.captioners import _banks, _towers

    # First what a person may have mistyped: a model takes its time.
    banks = _banks.load(config.phrases, config.groups, config.at_most)
    towers = _towers.load(model, device)
    if towers.names:
        return Named(config, towers)
    return Clip(config, towers, _banks.embed(towers, banks), _banks.fingerprint(banks))


class _Both:
    """What both voices have: the towers."""

    def __init__(self, config: Config, towers: Towers, more: str):
        self.config, self.towers, self.batch_size = config, towers, config.batch
        # What does not change a label stays out: the size of batches, and where a bank lies.
        said = config.model_dump_json(exclude={"batch", "phrases"})
        self.identity = hashlib.sha256(f"{VERSION} {towers.weights_hash} {said} {more}".encode()).hexdigest()

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> numpy.ndarray:
        """See `contracts.Embedder`."""
        return self.towers.embed_pictures(pictures)

    def embed_texts(self, texts: Sequence[str]) -> numpy.ndarray:
        """See `contracts.Embedder`."""
        return self.towers.embed_texts(texts)


class Clip(_Both):
    """A model that knows language.

    Attributes:
        judges_captions: its cosines say whether a caption belongs to a picture.
    """

    judges_captions = True

    def __init__(self, config: Config, towers: Towers, banks: Sequence[Embedded], fingerprint: str):
        super().__init__(config, towers, fingerprint)
        self.title, self.banks = f"CLIP, {towers.name}", list(banks)

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Label a batch; the image tower runs once."""
        from lora_scripts.captioners import _chains

        rows = self.towers.embed_pictures(pictures)
        offered = [[one for bank in self.banks for one in self._candidates(bank, row)] for row in rows]
        limits = _chains.Limits(
            {bank.bank.group: bank.bank.at_most for bank in self.banks}, self.config.most, self.config.gain
        )
        if self.config.chain:
            chosen = _chains.by_texts(self.towers, rows, offered, limits)
        else:
            chosen = [_chains.by_vectors(row, one, limits) for row, one in zip(rows, offered, strict=True)]
        return [self._label(tags) for tags in chosen]

    def _label(self, chosen: Sequence[Tag]) -> Label:
        order = {bank.bank.group: place for place, bank in enumerate(self.banks)}
        tags = sorted(chosen, key=lambda tag: (order[tag.group], -tag.score, tag.text))
        if not tags:
            return Label(sure=0.0, doubts=(Note("captioner.nothing", {}),), speaker="clip")
        first = next((tag for tag in tags if tag.group == "subject"), tags[0])
        doubts = (Note("captioner.unsure", {"phrase": first.text, "share": f"{first.score:.0%}"}),)
        return Label("", tuple(tags), first.score, doubts if first.score < UNSURE else (), "clip")

    def _candidates(self, bank: Embedded, seen: numpy.ndarray) -> list[tuple[Tag, numpy.ndarray]]:
        """Return the likeliest phrases of a group with their vectors; none where a contrast phrase is likelier."""
        import numpy

        cosines = numpy.round(bank.vectors @ seen, DIGITS).astype(numpy.float64)
        shares = numpy.exp((cosines - cosines.max()) * self.towers.scale)
        shares /= shares.sum()
        likeliest = numpy.argsort(-cosines, kind="stable")[:CANDIDATES]
        if likeliest[0] >= len(bank.bank.phrases):
            return []
        return [
            (Tag(bank.bank.phrases[i], round(float(shares[i]), 4), bank.bank.group), bank.vectors[i])
            for i in likeliest
            if i < len(bank.bank.phrases) and shares[i] >= self.config.share
        ]


class Named(_Both):
    """The embedded labeller: a name it has learned, and what is measured."""

    judges_captions = False

    def __init__(self, config: Config, towers: Towers):
        super().__init__(config, towers, "names")
        self.title = "the embedded labeller"
        self.vectors = self._vectors()

    def _vectors(self) -> numpy.ndarray:
        from lora_scripts.captioners._banks import Bank, embed

        return embed(self.towers, [Bank("names", self.towers.names, templates=("{}", "a picture of {}"))])[0].vectors

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Name what stands on a plain ground; say only what is measured of anything else."""
        from lora_scripts.captioners._pixels import measure

        rows = self.towers.embed_pictures(pictures)
        return [self._label(measure(picture), row) for picture, row in zip(pictures, rows, strict=True)]

    def _label(self, measured: Any, seen: numpy.ndarray) -> Label:
        import numpy

        cosines = numpy.round(self.vectors @ seen, DIGITS).astype(numpy.float64)
        shares = numpy.exp((cosines - cosines.max()) * self.towers.scale / self.towers.temperature)
        shares /= shares.sum()
        best = int(cosines.argmax())
        sure = round(float(shares[best]), 4)
        if not measured.plain:
            return Label("", self._wanted(measured.tags), 0.0, (Note("captioner.drawings_only", {}),), "pixels")
        name = self.towers.names[best]
        if sure < NAMED:
            doubt = Note("captioner.no_name", {"name": name, "sure": f"{sure:.0%}"})
            return Label("", self._wanted(measured.tags), sure, (doubt,), "pixels")
        tags = self._wanted((Tag(name, sure, "subject"), *measured.tags))
        doubts = (Note("captioner.unsure", {"phrase": name, "share": f"{sure:.0%}"}),) if sure < NAME_UNSURE else ()
        return Label("", tags, sure, doubts, "embedded labeller")

    def _wanted(self, tags: Sequence[Tag]) -> tuple[Tag, ...]:
        """Keep what the options let stand: the groups, and how many phrases of each and in all."""
        kept: list[Tag] = []
        for tag in tags:
            room = self.config.at_most.get(tag.group, len(tags)) - sum(one.group == tag.group for one in kept)
            if room > 0 and (not self.config.groups or tag.group in self.config.groups):
                kept.append(tag)
        return tuple(kept[: self.config.most])
