"""The use-case `sample`: a base, any number of LoRAs at their strengths, pictures with their recipe inside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts import registry
from lora_scripts.config.schema import RunConfig
from lora_scripts.contracts import Base, Placement
from lora_scripts.errors import BaseModelError, ConfigError
from lora_scripts.files import cannot_write, replace_file
from lora_scripts.preparation import file_names, find_base

MAX_STRENGTH = 100
TAG = re.compile(r"<lora:([^:>]+)(?::([^>]*))?>")


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly it counts; 1 is as trained."""

    path: Path
    strength: float

    @property
    def name(self) -> str:
        """What a prompt calls it: the file's stem."""
        return self.path.stem


@dataclass(frozen=True)
class Order:
    """What to draw.

    Attributes:
        size: (width, height) in pixels, or None for the base's native size.
        count: pictures a prompt; seeds go up by one.
    """

    prompts: tuple[str, ...]
    loras: tuple[Lora, ...] = ()
    seed: int = 1
    count: int = 1
    steps: int = 20
    guidance: float = 3.0
    size: tuple[int, int] | None = None


def parse_lora(value: str) -> Lora:
    """Read "FILE" or "FILE:STRENGTH".

    Raises:
        ConfigError: the strength is no number.
        BaseModelError: the file does not exist.
    """
    path, strength = Path(value), 1.0
    if not path.exists() and ":" in value:
        head, _, tail = value.rpartition(":")
        try:
            path, strength = Path(head), _strength(tail)
        except ValueError as error:
            raise ConfigError("cli.sample.bad_strength", value=value) from error
    if not path.exists():
        raise BaseModelError("cli.sample.no_lora_file", path=path)
    return Lora(path, strength)


def _strength(text: str) -> float:
    """Read a strength; anything beyond +-100 is a slip of the keyboard."""
    strength = float(text)
    if not abs(strength) <= MAX_STRENGTH:
        raise ValueError(text)
    return strength


def read_tags(prompt: str, loras: Sequence[Lora]) -> tuple[str, tuple[Lora, ...]]:
    """Take `<lora:name:0.8>` out of a prompt; the strength there replaces the command line's.

    Raises:
        ConfigError: a tag names no given LoRA, or its strength is no number.
    """
    strengths = {lora.name: lora.strength for lora in loras}
    for name, value in TAG.findall(prompt):
        if name not in strengths:
            raise ConfigError("cli.sample.unknown_tag", name=name, known=", ".join(strengths) or "-")
        try:
            strengths[name] = _strength(value) if value else 1.0
        except ValueError as error:
            raise ConfigError("cli.sample.bad_tag", name=name, value=value) from error
    bare = re.sub(r"\s*,?\s*$", "", re.sub(r"(,\s*)+", ", ", TAG.sub("", prompt)).strip(" ,"))
    return bare, tuple(Lora(lora.path, strengths[lora.name]) for lora in loras)


def from_run(config: RunConfig) -> Lora:
    """Return the LoRA a finished run of this config wrote.

    Raises:
        BaseModelError: there is none yet.
    """
    from lora_scripts.preparation import prepare

    names = file_names(prepare(config))
    path = config.output_dir / (names.get("kohya") or next(iter(names.values())))
    if not path.exists():
        raise BaseModelError("cli.sample.no_result", path=config.output_dir)
    return Lora(path, 1.0)


def sample(base: Base, order: Order, out: Path, tell: Callable[[Path], None]) -> list[Path]:
    """Draw every prompt and write PNG files named by prompt number and seed.

    Args:
        tell: called with each written file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    import torch
    from accelerate import PartialState

    device = PartialState().device
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    placement = Placement(device=device, base_dtype=dtype, encoder_dtype=torch.float32)
    family = registry.load("families", base.family).plugin.load(base, placement)
    size = order.size or (base.resolution, base.resolution)
    written = []
    for number, prompt in enumerate(order.prompts):
        bare, loras = read_tags(prompt, order.loras)
        with applied(family, loras):
            for copy in range(order.count):
                seed = order.seed + copy
                picture = family.preview([bare], size=size, seed=seed, steps=order.steps, guidance=order.guidance)[0]
                recipe = _recipe(base, order, bare, loras, seed, size)
                path = _free(out, f"{number:03d}-{seed}")
                _save(picture, path, recipe)
                tell(path)
                written.append(path)
    return written


def _free(folder: Path, stem: str) -> Path:
    """Return a name that no picture has yet: nothing that was drawn is overwritten."""
    path, again = folder / f"{stem}.png", 2
    while path.exists():
        path, again = folder / f"{stem}-{again}.png", again + 1
    return path


def applied(family: Any, loras: Sequence[Lora]) -> Any:
    """Context manager: the LoRAs' deltas are added to the live weights, and taken away exactly afterwards."""
    from lora_scripts.adapters import apply, files

    modules = family.trainable()
    known = {component: [name for name, _ in module.named_modules()] for component, module in modules.items()}
    adapters = [(files.load(lora.path, known_modules=known, family=family.name), lora.strength) for lora in loras]
    return apply.added(modules, adapters)


def _recipe(
    base: Base, order: Order, prompt: str, loras: Sequence[Lora], seed: int, size: tuple[int, int]
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "base": base.name,
        "loras": {lora.name: lora.strength for lora in loras},
        "seed": seed,
        "steps": order.steps,
        "guidance": order.guidance,
        "size": list(size),
    }


def _save(picture: Any, path: Path, recipe: dict[str, Any]) -> None:
    """Write a PNG with the recipe as "lora_scripts" (JSON) and as "parameters", which the WebUI shows."""
    from PIL.PngImagePlugin import PngInfo

    tags = "".join(f" <lora:{name}:{strength:g}>" for name, strength in recipe["loras"].items())
    info = PngInfo()
    info.add_itxt("lora_scripts", json.dumps(recipe, ensure_ascii=False))
    settings = f"Steps: {recipe['steps']}, CFG scale: {recipe['guidance']:g}, Seed: {recipe['seed']}"
    settings += f", Size: {recipe['size'][0]}x{recipe['size'][1]}, Model: {recipe['base']}"
    info.add_itxt("parameters", f"{recipe['prompt']}{tags}\n{settings}")
    replace_file(path, lambda file: picture.save(file, "PNG", pnginfo=info), durable=False)


def base_for(name: str) -> Base:
    """Return the base of that name, as `base_model` in a config would."""
    from lora_scripts.config.load import from_mapping

    return find_base(from_mapping({"base_model": name, "train_data_dir": ".", "output_dir": "."}))
