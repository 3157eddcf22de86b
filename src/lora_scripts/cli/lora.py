"""`lora-scripts lora`: look at LoRA files, check them, and make others of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import messages
from lora_scripts.errors import ConfigError, LoraScriptsError

if TYPE_CHECKING:
    from lora_scripts.cli._console import Console
    from lora_scripts.lora_tools.resize import Wish
    from lora_scripts.lora_tools.sources import Named
    from lora_scripts.lora_tools.verify import Check

OK, UNFIT = 0, 2
LAYOUTS = ("kohya", "diffusers", "peft")
DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's own verbs and their arguments."""
    text = messages.text
    tools = parser.add_subparsers(dest="tool", required=True, metavar="tool")
    made = {}
    for name in TOOLS:
        sentence = text(f"lora.tool.{name.replace('-', '_')}")
        made[name] = tools.add_parser(name, help=sentence, description=sentence)
        many = name in ("info", "verify", "merge", "check-compat")
        files = "FILE:WEIGHT" if name == "merge" else "FILE"
        if name != "extract":
            # An empty list is told in one sentence, in the user's language.
            made[name].add_argument("files", nargs="*", metavar=files, help=text("lora.help.files"))
        made[name].set_defaults(many=many)
    made["info"].add_argument("--json", action="store_true", help=text("lora.help.as_json"))
    made["extract"].add_argument("tuned", metavar="TUNED", help=text("lora.help.tuned"))
    made["extract"].add_argument("base", metavar="BASE", help=text("lora.help.tuned_base"))
    made["extract"].add_argument("--targets", default="", metavar="PRESET", help=text("lora.help.targets"))
    made["extract"].add_argument("--text-encoder", action="store_true", help=text("lora.help.text_encoder"))
    for name in ("verify", "merge", "resize", "convert", "check-compat"):
        made[name].add_argument("--base", default="", metavar="BASE", help=text("lora.help.base"))
    for name in ("merge", "resize", "extract"):
        made[name].add_argument("--rank", metavar="R", help=text("lora.help.rank"))
    for name in ("resize", "extract"):
        made[name].add_argument("--energy", metavar="SHARE", help=text("lora.help.energy"))
        made[name].add_argument("--ratio", metavar="X", help=text("lora.help.ratio"))
    made["merge"].add_argument("--exact", action="store_true", help=text("lora.help.exact"))
    for name in ("merge", "resize", "extract", "convert"):
        _add_output(made[name], name)


def _add_output(parser: argparse.ArgumentParser, name: str) -> None:
    text = messages.text
    parser.add_argument(
        "--output", type=Path, required=name != "convert", metavar="PATH", help=text("lora.help.output")
    )
    parser.add_argument("--to", choices=LAYOUTS, required=name == "convert", help=text("lora.help.to"))
    parser.add_argument("--dtype", choices=DTYPES, help=text("lora.help.dtype"))
    parser.add_argument("--overwrite", action="store_true", help=text("lora.help.overwrite"))


def run(arguments: argparse.Namespace) -> int:
    """Do what the tool's name says."""
    from lora_scripts.cli._console import Console

    if arguments.tool != "extract":
        if not arguments.files:
            raise ConfigError("lora.no_files")
        if not arguments.many and len(arguments.files) > 1:
            raise ConfigError("lora.one_file", count=len(arguments.files))
    return TOOLS[arguments.tool](arguments, Console())


def _info(arguments: argparse.Namespace, console: Console) -> int:
    from lora_scripts.cli import _lora_facts
    from lora_scripts.lora_tools.info import info

    found = [info(Path(name)) for name in arguments.files]
    if arguments.json:
        made = [facts.as_json() for facts in found]
        console.line(json.dumps(made[0] if len(made) == 1 else made, ensure_ascii=False, indent=2, allow_nan=False))
        return OK
    for number, facts in enumerate(found):
        for line in ([""] if number else []) + list(_lora_facts.lines(facts)):
            console.line(line)
    return OK


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    from lora_scripts.lora_tools.verify import verify

    codes = []
    for name in arguments.files:
        console.say("lora.verifying", path=name)
        try:
            checks = list(verify(Path(name), arguments.base))
        except LoraScriptsError as error:
            # A base that cannot be read ends it for one file; the others are still looked at.
            console.say("lora.bad", sentence=str(error))
            codes.append(error.exit_code)
            continue
        codes.append(_print_checks(checks, console))
    return max(codes)


def _print_checks(checks: Sequence[Check], console: Console) -> int:
    for check in checks:
        sentence = messages.text(check.code, **check.params)
        console.say("lora.good" if check.is_good else "lora.bad", sentence=sentence)
    return OK if all(check.is_good for check in checks) else UNFIT


def _check_compat(arguments: argparse.Namespace, console: Console) -> int:
    from lora_scripts.lora_tools.check_compat import check

    checks = list(check(_plain(arguments), arguments.base))
    for found in checks:
        console.line(messages.text(found.code, **found.params))
    return OK if all(found.is_good for found in checks) else UNFIT


def _merge(arguments: argparse.Namespace, console: Console) -> int:
    from lora_scripts.lora_tools import merge, sources

    if arguments.exact and arguments.rank is not None:
        raise ConfigError("lora.exact_or_rank")
    order = merge.Order(
        named=[sources.parse(value) for value in arguments.files],
        rank=sources.whole("--rank", arguments.rank),
        base=arguments.base,
        **_output(arguments),
    )
    merge.merge(order, console.say)
    return OK


def _resize(arguments: argparse.Namespace, console: Console) -> int:
    from lora_scripts.lora_tools import resize

    (named,) = _plain(arguments)
    order = resize.Order(named=named, wish=_wish(arguments), base=arguments.base, **_output(arguments))
    resize.resize(order, console.say)
    return OK


def _extract(arguments: argparse.Namespace, console: Console) -> int:
    from lora_scripts.lora_tools import extract

    order = extract.Order(
        tuned=arguments.tuned,
        base=arguments.base,
        wish=_wish(arguments),
        preset=arguments.targets,
        text_encoder=arguments.text_encoder,
        **_output(arguments),
    )
    extract.extract(order, console.say)
    return OK


def _convert(arguments: argparse.Namespace, console: Console) -> int:
    from lora_scripts.lora_tools import convert

    (named,) = _plain(arguments)
    convert.convert(convert.Order(named=named, base=arguments.base, **_output(arguments)), console.say)
    return OK


def _plain(arguments: argparse.Namespace) -> list[Named]:
    """Return files without weights."""
    from lora_scripts.lora_tools.sources import Named

    return [Named(Path(name)) for name in arguments.files]


def _wish(arguments: argparse.Namespace) -> Wish:
    from lora_scripts.lora_tools import resize, sources

    return resize.Wish(
        rank=sources.whole("--rank", arguments.rank),
        energy=sources.number("--energy", arguments.energy, 0, 1),
        ratio=sources.number("--ratio", arguments.ratio, 1, 1e9),
    )


def _output(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all verbs that write have, and see to it that the libraries are quiet."""
    from lora_scripts.cli._console import quiet_libraries

    quiet_libraries()
    return {key: getattr(arguments, key) for key in ("output", "to", "dtype", "overwrite")}


TOOLS: dict[str, Callable[[argparse.Namespace, Any], int]] = {
    "info": _info,
    "verify": _verify,
    "merge": _merge,
    "resize": _resize,
    "extract": _extract,
    "convert": _convert,
    "check-compat": _check_compat,
}
