"""What files call the modules of one base architecture: a table that each family states, read in both directions.

Canonical module paths are those of the diffusers or transformers class; a CLIP text encoder's begin with "text_model."
whichever way the installed transformers nests it. Kohya's tools write them with underscores for dots behind a prefix,
some architectures' with the block names of the original repository instead of diffusers'.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lora_scripts.adapters.names import canonical, split_words
from lora_scripts.errors import BaseModelError


@dataclass(frozen=True)
class PartKeys:
    """One component's names in files.

    Attributes:
        kohya: prefix that is written, such as "lora_unet_".
        also: further prefixes that are read, such as "lora_te1_" for a base with one text encoder.
        starts: first words of a module path that tell this component's modules from others' where no prefix does.
        words: words of its paths that hold an underscore themselves: kohya's names are read by them where the live
            model is not at hand.
        blocks: start of a canonical path -> what kohya's files write for it ("down_blocks.1.attentions.0" ->
            "input_blocks.4.1"); invertible; the longest start that fits counts; both forms are read.
        inside: end of a canonical path below such a block -> what is written for it ("conv1" -> "in_layers.2").
        loses_prefix: newer versions of transformers leave "text_model." out of the live module's paths.
    """

    kohya: str
    also: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    blocks: Mapping[str, str] = field(default_factory=dict)
    inside: Mapping[str, str] = field(default_factory=dict)
    loses_prefix: bool = False

    @property
    def prefixes(self) -> tuple[str, ...]:
        """All prefixes that are read."""
        return (self.kohya, *self.also)

    def written(self, path: str) -> str:
        """Return a canonical path with the block names of kohya's files, still with dots."""
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            block = self.blocks.get(".".join(parts[:length]))
            if block is not None:
                rest = ".".join(parts[length:])
                return ".".join(filter(None, (block, self.inside.get(rest, rest))))
        return path

    def kohya_name(self, path: str) -> str:
        """Return what kohya's tools, and all that read their files, call a module."""
        return self.kohya + self.written(path).replace(".", "_")

    def from_words(self, flat: str) -> str:
        """Return the canonical path of a kohya name without prefix, by the words and blocks stated here."""
        words = flat.split("_")
        for length in range(len(words), 0, -1):
            block = self._blocks_by_name.get("_".join(words[:length]))
            if block is not None:
                rest = "_".join(words[length:])
                known = self._inside_by_name.get(rest) or split_words(rest, self.words)
                return ".".join(filter(None, (block, known)))
        return split_words(flat, self.words)

    def paths(self, component: str, known: Iterable[str]) -> dict[str, str]:
        """Return the canonical path of every known module by its kohya name without prefix, in both forms.

        Args:
            known: module paths of a live model, canonical or not.

        Raises:
            BaseModelError: two modules have the same kohya name.
        """
        found: dict[str, str] = {}
        for path in known:
            full = canonical(component, path)
            for name in {full.replace(".", "_"), self.written(full).replace(".", "_")}:
                other = found.setdefault(name, full)
                if other != full:
                    raise BaseModelError("adapter.ambiguous_name", name=name, first=other, second=full)
        return found

    @cached_property
    def _blocks_by_name(self) -> dict[str, str]:
        return {written.replace(".", "_"): path for path, written in self.blocks.items()}

    @cached_property
    def _inside_by_name(self) -> dict[str, str]:
        return {written.replace(".", "_"): end for end, written in self.inside.items()}


@dataclass(frozen=True)
class KeyMap:
    """One architecture's names in files, and by what a file of it is known.

    Attributes:
        parts: by component ("unet", "text_encoder", "text_encoder_2"): the component's name is also its prefix in
            diffusers' files.
        marks: regular expressions; a tensor name that one is found in belongs to this architecture and no other.
        widths: widths of the text states, which the cross-attention's keys read: told by a pair's shape.
        said: starts of the header's "ss_base_model_version".
        architecture: variant -> ModelSpec's architecture without "/lora"; a variant that ends in "-v" is that of bases
            that predict v, "" is the variant of last resort.
        version: variant -> kohya's "ss_base_model_version"; likewise.
        implementation: ModelSpec's word for whose module names the file has.
    """

    parts: Mapping[str, PartKeys]
    marks: tuple[str, ...] = ()
    widths: Collection[int] = ()
    said: tuple[str, ...] = ()
    architecture: Mapping[str, str] = field(default_factory=dict)
    version: Mapping[str, str] = field(default_factory=dict)
    implementation: str = "diffusers"

    def by_prefix(self, name: str) -> tuple[str, str] | None:
        """Return (component, name without prefix) of a kohya name, or None."""
        for component, part in self.parts.items():
            for prefix in part.prefixes:
                if name.startswith(prefix):
                    return component, name.removeprefix(prefix)
        return None

    def component_of(self, path: str) -> str | None:
        """Tell whose module a path without prefix is, by its first word: the first component that has it."""
        first = path.split(".")[0]
        return next((component for component, part in self.parts.items() if first in part.starts), None)

    def variant_of(self, version: str) -> str:
        """Return the variant that "ss_base_model_version" says, or ""."""
        return next((variant for variant, said in self.version.items() if said == version), "")
