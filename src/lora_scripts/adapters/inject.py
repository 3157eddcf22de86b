"""Put low-rank pairs into live modules through PEFT; everything else is frozen.

Shapes: r = rank, o = out, i = in, k = kernel side.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.names import LANGUAGE_MODEL, canonical, some
from lora_scripts.errors import BaseModelError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.nn import Parameter

SLOT = "default"
# A name rather than an expression: "q_proj", "self_attn.q_proj".
_PLAIN_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Summary:
    """What was put into one component."""

    modules: int
    parameters: int


class Injected:
    """The live pairs of a run.

    Attributes:
        layers: PEFT's layers by component and canonical module path.
    """

    def __init__(self, layers: Mapping[str, Mapping[str, Any]]):
        self.layers = layers

    def parameters(self, component: str) -> dict[str, Parameter]:
        """Return the trained tensors of a component by name, "<module path>.down" and "<module path>.up"."""
        named: dict[str, Parameter] = {}
        for path, layer in self.layers[component].items():
            named[f"{path}.down"] = layer.lora_A[SLOT].weight
            named[f"{path}.up"] = layer.lora_B[SLOT].weight
        return named

    def module_names(self) -> dict[str, list[str]]:
        """Return the canonical paths of the modules that have a pair, by component."""
        return {component: list(layers) for component, layers in self.layers.items()}

    def summary(self) -> dict[str, Summary]:
        """Return modules and parameters by component."""
        return {
            component: Summary(len(layers), sum(p.numel() for p in self.parameters(component).values()))
            for component, layers in self.layers.items()
        }

    def adapter(self, meta: AdapterMeta) -> Adapter:
        """Return a float32 copy of the live pairs on the CPU."""
        pairs = {
            component: {path: self._pair(layer) for path, layer in layers.items()}
            for component, layers in self.layers.items()
        }
        return Adapter(pairs, meta)

    @staticmethod
    def _pair(layer: Any) -> LoraPair:
        down = layer.lora_A[SLOT].weight.detach().float().cpu().clone()
        up = layer.lora_B[SLOT].weight.detach().float().cpu().clone()
        return LoraPair(down, up, float(layer.lora_alpha[SLOT]))

    def load(self, adapter: Adapter) -> None:
        """Copy an adapter's pairs into the live ones, folding a different scale into `up`.

        Raises:
            BaseModelError: modules or shapes differ; at most ten are named.
        """
        import torch

        self._check_fits(adapter)
        for component, layers in self.layers.items():
            for path, layer in layers.items():
                pair = adapter.pairs[component][path]
                down, up = layer.lora_A[SLOT].weight, layer.lora_B[SLOT].weight
                factor = pair.scale / (layer.lora_alpha[SLOT] / layer.r[SLOT])
                with torch.no_grad():
                    down.copy_(pair.down.reshape(down.shape))
                    up.copy_((pair.up.float() * factor).reshape(up.shape))

    def _check_fits(self, adapter: Adapter) -> None:
        wrong = []
        for component in sorted(self.layers.keys() | adapter.pairs.keys()):
            ours, given = self.layers.get(component, {}), adapter.pairs.get(component, {})
            wrong += [f"{component}.{path}" for path in ours.keys() ^ given.keys()]
        name = adapter.meta.name
        if wrong:
            raise BaseModelError("adapter.does_not_fit", name=name, count=len(wrong), names=some(wrong))
        for component, layers in self.layers.items():
            for path, layer in layers.items():
                pair, rank = adapter.pairs[component][path], layer.r[SLOT]
                module = f"{component}.{path}"
                if pair.rank != rank:
                    raise BaseModelError("adapter.other_rank", name=name, module=module, found=pair.rank, rank=rank)
                found, wanted = _size(pair.up, pair.down), _size(layer.lora_B[SLOT].weight, layer.lora_A[SLOT].weight)
                if found != wanted:
                    raise BaseModelError("adapter.other_sizes", name=name, module=module, found=found, wanted=wanted)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base alone, for a while."""
        with self.scaled(0.0):
            yield

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Every pair counts `strength` times, for a while; 0 is the base alone."""
        layers = [layer for group in self.layers.values() for layer in group.values()]
        old = [layer.scaling[SLOT] for layer in layers]
        for layer, scale in zip(layers, old, strict=True):
            layer.scaling[SLOT] = scale * strength
        try:
            yield
        finally:
            for layer, scale in zip(layers, old, strict=True):
                layer.scaling[SLOT] = scale


def inject(
    modules: Mapping[str, nn.Module],
    *,
    targets: Mapping[str, Sequence[str]],
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
) -> Injected:
    """Freeze the modules and put float32 pairs beside every target.

    Args:
        modules: components, such as {"unet": ..., "text_encoder": ...}.
        targets: component -> regular expressions; one must match a module's whole path. A plain name may be the end
            of a language model's path, as in PEFT's `target_modules`.
        dropout: acts on the pairs' inputs while a network trains; the pairs start in that mode, even beside a base
            that is measured only.
        seed: the pairs' first values depend on it, the component and the module path only.

    Raises:
        ConfigError: the patterns match no linear or convolution layer; the nearest names are told.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers: dict[str, dict[str, Any]] = {}
    for module in modules.values():
        module.requires_grad_(False)
    for component, paths in choose(modules, targets).items():
        module = modules[component]
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules="|".join(re.escape(path) for path in paths),
            init_lora_weights=False,
        )
        inject_adapter_in_model(config, module, adapter_name=SLOT)
        named = dict(module.named_modules())
        layers[component] = {canonical(component, path): named[path] for path in paths}
        for path, layer in layers[component].items():
            _start(layer, f"{seed}/{component}/{path}")
    return Injected(layers)


def choose(modules: Mapping[str, nn.Module], targets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return each component's live paths that its patterns match; weights are not needed.

    Raises:
        ConfigError: a component has no match, or a pattern matches in none of the components it is meant for.
    """
    chosen = {component: matching(component, modules[component], patterns) for component, patterns in targets.items()}
    for pattern in dict.fromkeys(pattern for patterns in targets.values() for pattern in patterns):
        meant = [component for component, patterns in targets.items() if pattern in patterns]
        if not any(_matches(pattern, component, path) for component in meant for path in chosen[component]):
            nearest = ", ".join(path for component in meant for path in _nearest(modules[component], [pattern]))
            raise ConfigError("adapter.no_target", component=", ".join(meant), patterns=pattern, nearest=nearest)
    return chosen


def matching(component: str, module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the live paths of linear and convolution layers that a pattern matches whole; weights are not needed.

    Raises:
        ConfigError: the patterns match nothing; the nearest names are told.
    """
    paths = [path for path in _layer_paths(module) if any(_matches(pattern, component, path) for pattern in patterns)]
    if not paths:
        nearest = ", ".join(_nearest(module, patterns))
        raise ConfigError("adapter.no_target", component=component, patterns=", ".join(patterns), nearest=nearest)
    return paths


def _matches(pattern: str, component: str, path: str) -> bool:
    """Match the path as the live network has it, or as LoRA files do."""
    if any(re.fullmatch(pattern, name) for name in (path, canonical(component, path))):
        return True
    return component == LANGUAGE_MODEL and bool(_PLAIN_NAME.fullmatch(pattern)) and path.endswith(f".{pattern}")


def _layer_paths(module: nn.Module) -> list[str]:
    """Return the layers that may get a pair; not a language model's output head, whose weights must be fixed ones."""
    find_head: Any = getattr(module, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    return [path for path, child in module.named_modules() if _is_adaptable(child) and child is not head]


def _is_adaptable(module: nn.Module) -> bool:
    from torch import nn

    if isinstance(module, nn.Conv2d):
        # No file format can hold a pair of a grouped convolution, and PEFT's pairs leave dilation out.
        return module.groups == 1 and set(module.dilation) == {1}
    return isinstance(module, nn.Linear)


def _size(up: Tensor, down: Tensor) -> str:
    """Write the size of a pair's update; a 1x1 convolution and a linear layer have the same."""
    kernel = [side for side in down.shape[2:] if side != 1]
    return " x ".join(map(str, (up.shape[0], down.shape[1], *kernel)))


def _nearest(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return up to three paths whose ends are most like what the patterns spell out."""
    paths = _layer_paths(module)
    found: list[str] = []
    for pattern in patterns:
        spelled = re.sub(r"\\d|[\\^$*+?()|\[\]]", "", pattern).strip(".")
        parts = spelled.count(".") + 1
        ends = {".".join(path.split(".")[-parts:]): path for path in reversed(paths)}
        found += [ends[end] for end in difflib.get_close_matches(spelled, list(ends), n=1, cutoff=0.3)]
    return list(dict.fromkeys(found))[:3] or paths[:3]


def _start(layer: Any, name: str) -> None:
    """Down uniform in +-1 / sqrt(fan in), as PEFT's Kaiming start with a = sqrt(5); up zero; both float32."""
    import torch

    down, up = layer.lora_A[SLOT], layer.lora_B[SLOT]
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(number)
    bound = down.weight[0].numel() ** -0.5
    values = torch.empty(down.weight.shape).uniform_(-bound, bound, generator=generator)
    for part, value in ((down, values), (up, torch.zeros(up.weight.shape))):
        part.weight = torch.nn.Parameter(value.to(part.weight.device, torch.float32), requires_grad=True)
