"""`lora extract`: what a fine-tuned model has more than its base, as a LoRA: singular values of the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters import arithmetic
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.arithmetic import Spectrum
from lora_scripts.adapters.families import title
from lora_scripts.adapters.names import canonical, some
from lora_scripts.contracts import Base
from lora_scripts.errors import BaseModelError, ConfigError
from lora_scripts.lora_tools import proof, sources, writing
from lora_scripts.lora_tools.resize import Kept, Wish, tell_kept, truncate
from lora_scripts.lora_tools.sources import Tell
from lora_scripts.sampling import base_for

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Order:
    """What to extract.

    Attributes:
        tuned, base: folders, files or hub ids.
        preset: of the family's targets; "" is its default.
        text_encoder: the differences of the text encoder too.
    """

    tuned: str
    base: str
    output: Path
    wish: Wish
    preset: str = ""
    text_encoder: bool = False
    to: str | None = None
    dtype: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Found:
    """The differences.

    Attributes:
        spectra: of the modules that differ, by component and canonical path.
        inside, whole: energy of the differences in the chosen modules, and in all weights of all components.
    """

    spectra: Mapping[str, Mapping[str, Spectrum]]
    inside: float
    whole: float


def extract(order: Order, tell: Tell) -> Path:
    """Extract, write, read again, compare weights and outputs.

    Raises:
        ConfigError: the order makes no sense, or its place is taken.
        BaseModelError: the models cannot be read, do not belong together, or do not differ.
        NumericsError, MachineError: see `writing.write`.
    """
    if order.wish.is_empty:
        raise ConfigError("lora.extract_how")
    tuned, base = base_for(order.tuned), base_for(order.base)
    if tuned.family != base.family:
        params = {"tuned": order.tuned, "base": order.base, "one": title(tuned.family), "other": title(base.family)}
        raise BaseModelError("lora.extract_families", **params)
    plugin = registry.load("families", base.family).plugin
    targets = _targets(plugin, order)
    meta = _describe(base, tuned, order, "")
    target = writing.plan(order.output, order.to, meta, [], bases=[order.tuned, order.base], overwrite=order.overwrite)
    meta = _describe(base, tuned, order, plugin.weights_hash(base))
    theirs = sources.load_base(tuned)
    family = sources.load_base(base)
    found = differences(order, theirs.trainable(), family.trainable(), targets, tell)
    kept = truncate(found.spectra, order.wish, meta)
    _tell(found, kept, tell)
    read = writing.write(writing.cast(kept.adapter, order.dtype), target, tell)
    _compare_outputs(theirs, family, read, tell)
    return target.path


def differences(
    order: Order, tuned: Mapping[str, Any], base: Mapping[str, Any], targets: Mapping[str, Sequence[str]], tell: Tell
) -> Found:
    """Return the singular values of every chosen module's difference; modules without one are left out.

    Raises:
        BaseModelError: modules of other shapes, or no difference at all.
    """
    from lora_scripts.adapters.inject import choose

    chosen = choose({component: base[component] for component in targets}, targets)
    names = {"tuned": order.tuned, "base": order.base}
    energies = {component: _energy(tuned[component], base[component], component, names) for component in base}
    others = [component for component, energy in energies.items() if energy and component not in targets]
    if others:
        tell("lora.text_encoder_differs", components=some(others))
    inside, done, total = 0.0, 0, sum(map(len, chosen.values()))
    spectra: dict[str, dict[str, Spectrum]] = {}
    for component, paths in chosen.items():
        theirs = dict(tuned[component].named_modules())
        ours = dict(base[component].named_modules())
        found = {}
        for path in paths:
            delta = theirs[path].weight.detach().double() - ours[path].weight.detach().double()
            if bool(delta.any()):
                found[canonical(component, path)] = arithmetic.split(delta.flatten(1), tuple(delta.shape))
                inside += float(delta.square().sum())
            done += 1
            tell("lora.extracting", done=done, total=total)
        if found:
            spectra[component] = found
    if not spectra:
        raise BaseModelError("lora.no_difference", **names)
    return Found(spectra, inside, sum(energies.values()))


def _energy(tuned: nn.Module, base: nn.Module, component: str, names: Mapping[str, str]) -> float:
    """Return the sum of the squared differences of all weights.

    Raises:
        BaseModelError: weights that are on one side only or of another shape, or not finite.
    """
    theirs, ours = dict(tuned.named_parameters()), dict(base.named_parameters())
    wrong = [name for name in theirs.keys() | ours.keys() if _shape(theirs, name) != _shape(ours, name)]
    if wrong:
        listed = some(f"{component}.{name}" for name in wrong)
        raise BaseModelError("lora.extract_shapes", **names, count=len(wrong), names=listed)
    return sum(float((theirs[name].detach() - ours[name].detach()).double().square().sum()) for name in ours)


def _shape(parameters: Mapping[str, nn.Parameter], name: str) -> tuple[int, ...] | None:
    return tuple(parameters[name].shape) if name in parameters else None


def _targets(plugin: Any, order: Order) -> Mapping[str, Sequence[str]]:
    preset = order.preset or plugin.default_preset
    if preset not in plugin.target_presets:
        known = ", ".join(plugin.target_presets)
        raise ConfigError("lora.no_preset", value=preset, family=title(plugin.name), known=known)
    return {
        component: patterns
        for component, patterns in plugin.target_presets[preset].items()
        if order.text_encoder or not component.startswith("text_encoder")
    }


def _describe(base: Base, tuned: Base, order: Order, base_hash: str) -> AdapterMeta:
    return AdapterMeta(
        family=base.family,
        name=order.output.stem,
        base_name=base.name,
        base_hash=base_hash,
        base_reference=base.reference,
        variant=base.variant,
        prediction_type=tuned.prediction_type,
        resolution=(base.resolution or 512,) * 2,
        training={"training_comment": f"extracted from {tuned.name}"},
    )


def _tell(found: Found, kept: Kept, tell: Tell) -> None:
    ranks = [pair.rank for pair in sources.flat(kept.adapter).values()]
    shown = str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)}-{max(ranks)}"
    share = min(1.0, found.inside / found.whole)
    tell("lora.extracted", modules=len(ranks), rank=shown, share=sources.percent(share))
    tell_kept(kept, tell)


def _compare_outputs(tuned: Any, base: Any, read: Adapter, tell: Tell) -> None:
    """Say how much of the way from the base's outputs to the tuned model's the LoRA goes."""
    wanted, bare, made = proof.outputs(tuned, ()), proof.outputs(base, ()), proof.outputs(base, [(read, 1.0)])
    effect = proof.distance(wanted, bare)
    share = proof.distance(wanted, made) / effect if effect else 0.0
    tell("lora.outputs_near", base=base.base.name, share=sources.percent(share))
