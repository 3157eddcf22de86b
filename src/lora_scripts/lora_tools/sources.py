"""What a person names on the command line: LoRA files with their weights, and bases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters import arithmetic, files
from lora_scripts.adapters.adapter import Adapter, LoraPair, Update
from lora_scripts.adapters.arithmetic import Factors
from lora_scripts.adapters.families import title
from lora_scripts.adapters.names import LANGUAGE_MODEL, some
from lora_scripts.contracts import Base, Placement
from lora_scripts.errors import BaseModelError, ConfigError
from lora_scripts.sampling import base_for

if TYPE_CHECKING:
    from torch import nn

MAX_WEIGHT = 100
MAX_RANK = 4096

Tell = Callable[..., None]
"""Called with a message code and its parameters."""


@dataclass(frozen=True)
class Named:
    """A LoRA and how strongly it counts; 1 is as trained."""

    path: Path
    weight: float = 1.0

    @property
    def name(self) -> str:
        """What a line calls it."""
        return self.path.stem if self.path.is_file() else self.path.name


@dataclass(frozen=True)
class Opened:
    """A LoRA that was read."""

    named: Named
    adapter: Adapter


def parse(value: str) -> Named:
    """Read "FILE" or "FILE:WEIGHT".

    Raises:
        ConfigError: the weight is no number from -100 to 100, or is 0.
        BaseModelError: the file does not exist.
    """
    path, text = Path(value), "1"
    if not path.exists() and ":" in value:
        head, _, text = value.rpartition(":")
        # A colon inside a file's name that is not there is no weight.
        path = Path(head) if Path(head).exists() else path
    if not path.exists():
        raise BaseModelError("adapter.no_file", path=path)
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < abs(weight) <= MAX_WEIGHT:
        raise ConfigError("lora.bad_weight", value=value, most=MAX_WEIGHT)
    return Named(path, weight)


def whole(option: str, text: str | None, most: int = MAX_RANK) -> int | None:
    """Read a whole number from 1 on, such as a rank; None stays None.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise ConfigError("lora.bad_number", option=option, value=text, most=most)
    return int(text)


def number(option: str, text: str | None, least: float, most: float) -> float | None:
    """Read a number above `least`, up to `most`; None stays None.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least < value <= most:
        raise ConfigError("lora.bad_share", option=option, value=text, least=f"{least:g}", most=f"{most:g}")
    return value


def open_all(named: Sequence[Named], dtype: str | None = "float32") -> list[Opened]:
    """Read every LoRA; see `files.load`.

    Raises:
        ConfigError: there is none.
        BaseModelError: one cannot be read.
    """
    if not named:
        raise ConfigError("lora.no_files")
    return [Opened(one, files.load(one.path, dtype=dtype)) for one in named]


def refuse_strangers(opened: Sequence[Opened]) -> None:
    """Refuse LoRAs for models of different families, and updates of one module in two shapes.

    Raises:
        BaseModelError: names the first two that differ.
    """
    first = opened[0]
    for other in opened[1:]:
        ours, theirs = first.adapter.meta.family, other.adapter.meta.family
        if ours != theirs:
            params = {"first": first.named.path, "second": other.named.path, "one": title(ours), "other": title(theirs)}
            raise BaseModelError("lora.two_families", **params)
        for component, updates in first.adapter.pairs.items():
            for module, update in updates.items():
                twin = other.adapter.pairs.get(component, {}).get(module)
                if twin is not None and size_of(update) != size_of(twin):
                    raise BaseModelError(
                        "lora.two_sizes",
                        first=first.named.path,
                        second=other.named.path,
                        module=f"{component}.{module}",
                        one=size_of(update),
                        other=size_of(twin),
                    )


def refuse_dependent(one: Opened) -> None:
    """Refuse updates that are only known together with the weights of the base.

    Raises:
        BaseModelError: names the kind.
    """
    kinds = {update.kind for update in flat(one.adapter).values() if depends(update)}
    if kinds:
        raise BaseModelError("lora.depends_on_base", path=one.named.path, kind=some(kinds))


def factored(one: Opened, base: Base | None) -> dict[str, dict[str, Factors]]:
    """Return the factors of all updates, by component and module.

    Args:
        base: tells the kernels of convolutions, which some kinds of update do not.

    Raises:
        ConfigError: it is needed and not there.
        BaseModelError: it has not all modules.
    """
    skeleton = registry.load("families", base.family).plugin.skeleton(base) if base else {}
    found: dict[str, dict[str, Factors]] = {}
    for component, updates in one.adapter.pairs.items():
        named = dict(skeleton[component].named_modules()) if component in skeleton else {}
        for module, update in updates.items():
            shape = None
            if not isinstance(update, LoraPair) and not _is_linear(component):
                if base is None:
                    raise ConfigError("lora.needs_base", path=one.named.path, kind=update.kind)
                weight = getattr(named.get(module), "weight", None)
                if weight is None or (weight.shape[0], weight[0].numel()) != update.size:
                    name = f"{component}.{module}"
                    raise BaseModelError("adapter.not_in_base", name=one.named.path, count=1, names=name)
                shape = tuple(weight.shape)
            found.setdefault(component, {})[module] = arithmetic.factors(update, shape)
    return found


def _is_linear(component: str) -> bool:
    """Say whether a component has no convolutions."""
    return component == LANGUAGE_MODEL or component.startswith("text_encoder")


def depends(update: Update) -> bool:
    """Say whether an update needs the weight that it is added to."""
    return bool(update.needs_weight)


def size_of(update: Update) -> str:
    """Write rows and columns of the weight that an update is for."""
    return "{} x {}".format(*update.size)


def flat(adapter: Adapter) -> dict[str, Any]:
    """Return all updates by "component.module"."""
    return {
        f"{component}.{path}": made for component, updates in adapter.pairs.items() for path, made in updates.items()
    }


def percent(share: float) -> str:
    """Print a share with as many digits as a person reads: "97.3 %", "99.98 %"."""
    if math.isnan(share):
        return "-"
    return f"{100 * share:.{4 if 0.999 <= share < 1 else 3}g} %"


def find_base(name: str, family: str, path: Path) -> Base:
    """Return the base of that name, refusing one of another family than the LoRA's.

    Args:
        path: the LoRA, for the sentence.
    """
    base = base_for(name)
    if base.family != family:
        raise BaseModelError(
            "lora.other_base_family", path=path, family=title(family), base=name, found=title(base.family)
        )
    return base


def load_base(base: Base) -> Any:
    """Load a base in float32 on the CPU."""
    import torch

    placement = Placement(device=torch.device("cpu"), base_dtype=torch.float32, encoder_dtype=torch.float32)
    return registry.load("families", base.family).plugin.load(base, placement)


def module_names(modules: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Return the paths of all modules by component, as `files.load` wants them."""
    return {component: [name for name, _ in module.named_modules()] for component, module in modules.items()}
