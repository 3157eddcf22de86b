"""`lora-scripts sample`: draw with a base and any number of LoRAs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from lora_scripts import messages
from lora_scripts.cli import _config_arguments
from lora_scripts.errors import ConfigError

MAX_COUNT = 10_000
MAX_GUIDANCE = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    text = messages.text
    _config_arguments.add(parser, required=False)
    parser.add_argument("--base", metavar="BASE", help=text("cli.help.base"))
    parser.add_argument("--lora", action="append", default=[], metavar="FILE:STRENGTH", help=text("cli.help.lora"))
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help=text("cli.help.prompt"))
    parser.add_argument("--seed", type=_whole(0, 2**63 - 1 - MAX_COUNT), default=1, help=text("cli.help.seed"))
    parser.add_argument("--count", type=_whole(1, MAX_COUNT), default=1, help=text("cli.help.count"))
    parser.add_argument("--steps", type=_whole(1, 1000), default=20, help=text("cli.help.steps"))
    parser.add_argument("--guidance", type=_guidance, default=None, help=text("cli.help.guidance"))
    parser.add_argument("--size", metavar="WxH", help=text("cli.help.size"))
    parser.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help=text("cli.help.out"))


def run(arguments: argparse.Namespace) -> int:
    """Draw and print the files' names."""
    from lora_scripts import sampling
    from lora_scripts.cli._console import Console, quiet_libraries
    from lora_scripts.preparation import find_base

    config = _config_arguments.load(arguments) if arguments.config is not None else None
    if arguments.base is None and config is None:
        raise ConfigError("cli.sample.no_base")
    if config is not None and arguments.base is None:
        base = find_base(config)
    else:
        base = sampling.base_for(arguments.base)
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
        seed=arguments.seed,
        count=arguments.count,
        steps=arguments.steps,
        guidance=guidance,
        size=_size(arguments.size, base.multiple, base.resolution),
    )
    console = Console()
    quiet_libraries()
    sampling.sample(base, order, arguments.out, lambda path: console.say("cli.result.sampled", path=path))
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
