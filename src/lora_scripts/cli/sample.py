"""`lora-scripts sample`: draw with a base and any number of LoRAs, or talk to a language model with one."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts import messages
from lora_scripts.cli import _config_arguments
from lora_scripts.errors import ConfigError

if TYPE_CHECKING:
    from lora_scripts.config.schema import RunConfig
    from lora_scripts.contracts import Base

MAX_COUNT = 10_000
MAX_GUIDANCE = 50
NEW_TOKENS = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    text = messages.text
    _config_arguments.add(parser, required=False)
    parser.add_argument("--base", metavar="BASE", help=text("cli.help.base"))
    parser.add_argument("--lora", action="append", default=[], metavar="FILE:STRENGTH", help=text("cli.help.lora"))
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help=text("cli.help.prompt"))
    parser.add_argument("--seed", type=_whole(0, 2**63 - 1 - MAX_COUNT), default=None, help=text("cli.help.seed"))
    parser.add_argument("--count", type=_whole(1, MAX_COUNT), default=None, help=text("cli.help.count"))
    parser.add_argument("--steps", type=_whole(1, 1000), default=None, help=text("cli.help.steps"))
    parser.add_argument("--guidance", type=_guidance, default=None, help=text("cli.help.guidance"))
    parser.add_argument("--size", metavar="WxH", help=text("cli.help.size"))
    parser.add_argument("--new-tokens", type=_whole(1, 4096), default=None, help=text("cli.help.new_tokens"))
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help=text("cli.help.out"))


def run(arguments: argparse.Namespace) -> int:
    """Draw and print the files' names, or print what base and LoRA say."""
    from lora_scripts import sampling
    from lora_scripts.preparation import find_base

    config = _config_arguments.load(arguments) if arguments.config is not None else None
    if config is not None and arguments.base is None:
        base = find_base(config)
    elif arguments.base is not None:
        base = sampling.base_for(arguments.base)
    else:
        base = _base_of_adapter(arguments.lora)
    if base.resolution == 0:
        return _talk(arguments, base, config)
    return _draw(arguments, base, config)


def _base_of_adapter(loras: list[str]) -> Base:
    """Return the base that a language model's adapter folder names."""
    from lora_scripts import sampling
    from lora_scripts.adapters import files

    references = [files.base_of(lora.path)[0] for lora in map(sampling.parse_lora, loras) if lora.path.is_dir()]
    if not references or not references[0]:
        raise ConfigError("cli.sample.no_base")
    return sampling.base_for(references[0])


def _talk(arguments: argparse.Namespace, base: Base, config: RunConfig | None) -> int:
    """Print each prompt with the base's answer and the LoRA's."""
    from lora_scripts import answering, sampling
    from lora_scripts.cli._console import Console, quiet_libraries

    loras = [sampling.parse_lora(value) for value in arguments.lora]
    if config is not None and not loras:
        loras = [sampling.from_run(config)]
    if len(loras) > 1:
        raise ConfigError("llm.one_lora", count=len(loras))
    for option in ("seed", "count", "steps", "guidance", "size", "out"):
        if getattr(arguments, option) is not None:
            raise ConfigError("llm.only_pictures", option=f"--{option}")
    prompts = arguments.prompt or (config.preview.prompts if config is not None else ())
    if not prompts:
        raise ConfigError("llm.no_prompt")
    quiet_libraries()
    console = Console()
    paths = [lora.path if lora.path.is_dir() else lora.path.parent for lora in loras]
    speaker = answering.open_speaker(answering.parse_adapters([str(path) for path in paths]), base.reference)
    worn = [(None, "train.label_base", 1.0), *(("", "train.label_lora", lora.strength) for lora in loras)]
    longest = arguments.new_tokens or NEW_TOKENS
    answers = [answering.answer(speaker, prompts, name, how, longest) for name, _, how in worn]
    for number, prompt in enumerate(prompts):
        console.line(f"> {prompt}")
        for (_, code, _), texts in zip(worn, answers, strict=True):
            console.line(f"  {messages.text(code)}: {texts[number]}")
    return 0


def _draw(arguments: argparse.Namespace, base: Base, config: RunConfig | None) -> int:
    """Draw and print the files' names."""
    from lora_scripts import sampling
    from lora_scripts.cli._console import Console, quiet_libraries

    if arguments.new_tokens is not None:
        raise ConfigError("llm.only_texts", option="--new-tokens")
    loras = [sampling.parse_lora(value) for value in arguments.lora]
    if config is not None and not loras:
        loras = [sampling.from_run(config)]
    prompts = arguments.prompt or (config.preview.prompts if config is not None else ())
    if not prompts:
        raise ConfigError("cli.sample.no_prompt")
    for prompt in prompts:
        sampling.read_tags(prompt, loras)
    guidance = arguments.guidance if arguments.guidance is not None else 7.5 if base.webui else 3.0
    order = sampling.Order(
        prompts=tuple(prompts),
        loras=tuple(loras),
        seed=1 if arguments.seed is None else arguments.seed,
        count=arguments.count or 1,
        steps=arguments.steps or 20,
        guidance=guidance,
        size=_size(arguments.size, base.multiple, base.resolution),
    )
    console = Console()
    quiet_libraries()
    out = arguments.out or Path("samples")
    sampling.sample(base, order, out, lambda path: console.say("cli.result.sampled", path=path))
    return 0


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range, for argparse."""

    def read(value: str) -> int:
        if not re.fullmatch(r"-?\d{1,19}", value) or not least <= int(value) <= most:
            raise argparse.ArgumentTypeError(
                messages.text("cli.sample.bad_number", value=value, least=least, most=most)
            )
        return int(value)

    return read


def _not_allowed(value: str, least: int, most: int) -> argparse.ArgumentTypeError:
    sentence = messages.text("cli.sample.bad_number", value=value, least=least, most=most)
    return argparse.ArgumentTypeError(sentence)


def _guidance(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MAX_GUIDANCE:
        raise argparse.ArgumentTypeError(
            messages.text("cli.sample.bad_number", value=value, least=0, most=MAX_GUIDANCE)
        )
    return number


def _size(value: str | None, multiple: int, native: int) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", value)
    sides = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not all(0 < side <= 8192 and side % multiple == 0 for side in sides):
        raise ConfigError("cli.sample.bad_size", value=value, multiple=multiple, example=f"{native}x{native}")
    return sides
