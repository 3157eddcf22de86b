"""Put an adapter into live modules through PEFT; everything else is frozen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, Kind, Start
from lora_scripts.adapters.kinds._live import SLOT
from lora_scripts.adapters.names import canonical, some
from lora_scripts.adapters.targets import Layer, Rule, choose, matching, settle
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import Parameter

__all__ = ["SLOT", "Injected", "Summary", "choose", "inject", "matching"]


@dataclass(frozen=True)
class Summary:
    """What was put into one component."""

    modules: int
    parameters: int


class Injected:
    """The live updates of a run.

    Attributes:
        layers: PEFT's layers by component and canonical module path.
        kind: registry name of the kind of update.
    """

    def __init__(
        self, layers: Mapping[str, Mapping[str, Any]], kind: str = "lora", labels: Mapping[str, str] | None = None
    ):
        self.layers, self.kind = layers, kind
        self._plugin: Any = registry.load("adapters", kind)
        self._labels = labels or {}

    def parameters(self, component: str) -> dict[str, Parameter]:
        """Return the trained tensors of a component by name, such as "<module path>.down" and "<module path>.up"."""
        named: dict[str, Parameter] = {}
        for path, layer in self.layers[component].items():
            for role, (holder, name) in self._plugin.places(layer).items():
                named[f"{path}.{role}"] = getattr(holder, name)
        return named

    def groups(self) -> dict[str, dict[str, Parameter]]:
        """Return the trained tensors by name, in groups that share a learning rate.

        A group's label is its component, or "<component>/<n>" for the n-th section of `lora_layers`, from 1, where that
        has a rate of its own; each component's own group stands first, and is absent where nothing is left for it.
        """
        found: dict[str, dict[str, Parameter]] = {}
        for component, layers in self.layers.items():
            found[component] = {}
            for path, layer in layers.items():
                group = found.setdefault(self._labels.get(f"{component}.{path}", component), {})
                for role, (holder, name) in self._plugin.places(layer).items():
                    group[f"{path}.{role}"] = getattr(holder, name)
        return {label: group for label, group in found.items() if group}

    def buffers(self) -> dict[str, dict[str, Tensor]]:
        """Return the live tensors that do not train, by component, then by "<module path>.<name>"; mostly none.

        A checkpoint has to hold them and put them back in place (`copy_`), beside the trained tensors: another machine,
        or another number of threads, would not compute them again to the last bit.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for component, layers in self.layers.items():
            for path, layer in layers.items():
                for name, tensor in self._plugin.buffers(layer).items():
                    found.setdefault(component, {})[f"{path}.{name}"] = tensor
        return found

    def module_names(self) -> dict[str, list[str]]:
        """Return the canonical paths of the modules that have an update, by component."""
        return {component: list(layers) for component, layers in self.layers.items()}

    def summary(self) -> dict[str, Summary]:
        """Return modules and parameters by component."""
        return {
            component: Summary(len(layers), sum(p.numel() for p in self.parameters(component).values()))
            for component, layers in self.layers.items()
        }

    def adapter(self, meta: AdapterMeta) -> Adapter:
        """Return a float32 copy of the live updates on the CPU; they are those of the base as it was loaded."""
        pairs = {
            component: {path: self._plugin.update(layer) for path, layer in layers.items()}
            for component, layers in self.layers.items()
        }
        return Adapter(pairs, replace(meta, kind=self.kind))

    def load(self, adapter: Adapter) -> None:
        """Copy an adapter's updates into the live ones, folding a different scale into one of the factors.

        Raises:
            BaseModelError: the kind, modules, ranks or shapes differ; at most ten are named, and nothing is changed.
        """
        import torch

        self._check_modules(adapter)
        name = adapter.meta.name
        found = []
        for component, layers in self.layers.items():
            for path, layer in layers.items():
                update = adapter.pairs[component][path]
                values = self._plugin.values(layer, update, name=name, module=f"{component}.{path}")
                found.append((self._plugin.places(layer), values))
        with torch.no_grad():
            for places, values in found:
                for role, (holder, attribute) in places.items():
                    getattr(holder, attribute).copy_(values[role])

    def _check_modules(self, adapter: Adapter) -> None:
        wrong = []
        for component in sorted(self.layers.keys() | adapter.pairs.keys()):
            ours, given = self.layers.get(component, {}), adapter.pairs.get(component, {})
            wrong += [f"{component}.{path}" for path in ours.keys() ^ given.keys()]
        name = adapter.meta.name
        if wrong:
            raise BaseModelError("adapter.does_not_fit", name=name, count=len(wrong), names=some(wrong))
        kinds = {update.kind for updates in adapter.pairs.values() for update in updates.values()} - {self.kind}
        if kinds:
            raise BaseModelError("adapter.wrong_kind", name=name, found=some(kinds), wanted=self.kind)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base alone, for a while, exactly."""
        layers = [layer for group in self.layers.values() for layer in group.values()]
        # PEFT's own switch would also stop the gradients of tensors that a graph may be holding.
        old = [layer._disable_adapters for layer in layers]
        try:
            for layer in layers:
                layer._disable_adapters = True
            with self.scaled(0.0):
                yield
        finally:
            for layer, was in zip(layers, old, strict=True):
                layer._disable_adapters = was

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Every update counts `strength` times, for a while; 0 is the base alone."""
        layers = [layer for group in self.layers.values() for layer in group.values()]
        old = [self._plugin.strength(layer) for layer in layers]
        try:
            for layer, scale in zip(layers, old, strict=True):
                self._plugin.set_strength(layer, scale * strength)
            yield
        finally:
            for layer, scale in zip(layers, old, strict=True):
                self._plugin.set_strength(layer, scale)


def inject(
    modules: Mapping[str, nn.Module],
    *,
    targets: Mapping[str, Sequence[str]],
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
    kind: str = "lora",
    options: Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    dtype: torch.dtype | None = None,
) -> Injected:
    """Freeze the modules and put an update beside every target.

    Args:
        modules: components, such as {"unet": ..., "text_encoder": ...}.
        targets: component -> regular expressions; one must match a module's whole path. A plain name may be the end
            of a language model's path, as in PEFT's `target_modules`.
        dropout: acts on the pairs' inputs while a network trains; the pairs start in that mode, even beside a base
            that is measured only.
        seed: first values depend on it, the component and the module path only, beside the weight where the start does.
        kind, options: which update, by registry name, and its own options.
        rules: ranks, alphas and rates of single layers.
        dtype: of the trained tensors; float32 where left out.

    Raises:
        ConfigError: the patterns match no linear or convolution layer, the nearest names are told; or see `settle`.
        BaseModelError: a layer's weight allows no start.
    """
    import torch

    plugin: Any = registry.load("adapters", kind)
    parsed = plugin.Config(**(options or {}))
    layers: dict[str, dict[str, Any]] = {}
    labels: dict[str, str] = {}
    for module in modules.values():
        module.requires_grad_(False)
    for component, wanted in settle(modules, targets, rank=rank, alpha=alpha, rules=rules).items():
        named = _replaced(modules[component], plugin, parsed, dropout, wanted)
        layers[component] = {}
        for path, layer in wanted.items():
            place = canonical(component, path)
            layers[component][place] = named[path]
            labels[f"{component}.{place}"] = layer.group
            start = Start(_generator(f"{seed}/{component}/{place}"), dtype or torch.float32, f"{component}.{place}")
            _begin(named[path], plugin, parsed, start)
    return Injected(layers, kind, labels)


def _replaced(
    module: nn.Module, plugin: Kind, options: Any, dropout: float, wanted: Mapping[str, Layer]
) -> dict[str, Any]:
    """Let PEFT put its layers in place; return them, and all other modules, by live path."""
    from peft import inject_adapter_in_model

    first = next(iter(wanted.values()))
    ranks: dict[Any, list[str]] = {}
    alphas: dict[Any, list[str]] = {}
    for path, layer in wanted.items():
        ranks.setdefault(layer.rank, []).append(path)
        alphas.setdefault(layer.alpha, []).append(path)
    config = plugin.peft_config(
        options,
        dropout=dropout,
        r=first.rank,
        alpha=first.alpha,
        rank_pattern={_any_of(paths): value for value, paths in ranks.items() if value != first.rank},
        alpha_pattern={_any_of(paths): value for value, paths in alphas.items() if value != first.alpha},
        target_modules="|".join(re.escape(path) for path in wanted),
    )
    inject_adapter_in_model(config, module, adapter_name=SLOT)
    return dict(module.named_modules())


def _any_of(paths: Sequence[str]) -> str:
    """Return one expression for many whole paths: PEFT tries each of its patterns on each layer."""
    return "^(?:" + "|".join(re.escape(path) for path in paths) + ")"


def _begin(layer: Any, plugin: Kind, options: Any, start: Start) -> None:
    """Give a layer its first values, in tensors that train."""
    from torch.nn import Parameter

    places = plugin.places(layer)
    values: Mapping[str, Tensor] = {role: getattr(holder, name) for role, (holder, name) in places.items()}
    # On the meta device only shapes are asked for, of which no start can be computed.
    if not any(value.is_meta for value in values.values()):
        values = plugin.start(layer, options, start)
    for role, (holder, name) in places.items():
        device = getattr(holder, name).device
        setattr(holder, name, Parameter(values[role].to(device, start.dtype), requires_grad=True))
    plugin.ready(layer, options)


def _generator(name: str) -> torch.Generator:
    import torch

    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)
