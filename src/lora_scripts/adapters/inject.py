"""Put low-rank pairs into live modules through PEFT; everything else is frozen.

Shapes: r = rank, o = out, i = in, k = kernel side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.errors import BaseModelError, ConfigError

if TYPE_CHECKING:
    from torch import nn
    from torch.nn import Parameter

SLOT = "default"
MAX_NAMED = 10


def canonical(component: str, path: str) -> str:
    """Return a module path with "text_model." in front for a CLIP text encoder, however transformers nests it."""
    inside_clip = component.startswith("text_encoder") and path.startswith(("encoder.", "embeddings."))
    return f"text_model.{path}" if inside_clip else path


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
        """Return the canonical module paths by component."""
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

        wrong = []
        for component, layers in self.layers.items():
            given = adapter.pairs.get(component, {})
            wrong += [f"{component}.{path}" for path in sorted(layers.keys() ^ given.keys())]
        wrong += [f"{c}.{path}" for c in adapter.pairs.keys() - self.layers.keys() for path in adapter.pairs[c]]
        if wrong:
            names = ", ".join(wrong[:MAX_NAMED])
            raise BaseModelError("adapter.does_not_fit", name=adapter.meta.name, count=len(wrong), names=names)
        for component, layers in self.layers.items():
            for path, layer in layers.items():
                pair = adapter.pairs[component][path]
                down, up = layer.lora_A[SLOT].weight, layer.lora_B[SLOT].weight
                if down.shape != pair.down.shape or up.shape != pair.up.shape:
                    raise BaseModelError(
                        "adapter.other_rank", name=adapter.meta.name, module=path, found=pair.rank, rank=down.shape[0]
                    )
                with torch.no_grad():
                    down.copy_(pair.down)
                    up.copy_(pair.up.float() * (pair.scale / (layer.lora_alpha[SLOT] / layer.r[SLOT])))

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
        targets: component -> regular expressions; one must match a module's whole path.
        seed: the pairs' first values depend on it, the component and the module path only.

    Raises:
        ConfigError: the patterns match no linear or convolution layer; the nearest names are told.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers: dict[str, dict[str, Any]] = {}
    for component, module in modules.items():
        module.requires_grad_(False)
        paths = matching(module, targets[component])
        if not paths:
            raise ConfigError(
                "adapter.no_target",
                component=component,
                patterns=", ".join(targets[component]),
                nearest=", ".join(_nearest(module, targets[component])),
            )
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


def matching(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the paths of linear and convolution layers that a pattern matches whole."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return [path for path in _layer_paths(module) if any(pattern.fullmatch(path) for pattern in compiled)]


def _layer_paths(module: nn.Module) -> list[str]:
    from torch import nn

    return [path for path, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]


def _nearest(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    paths = _layer_paths(module)
    found = [registry.nearest(pattern, paths) for pattern in patterns]
    return [path for path in dict.fromkeys(found) if path] or paths[:3]


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
