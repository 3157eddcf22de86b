"""`lora-scripts export`: a language model's LoRA as a merged model, a GGUF file or a plain PEFT folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_scripts import messages

TARGETS = ("merged", "gguf", "peft")
DTYPES = ("float32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    text = messages.text
    parser.add_argument("--adapter", type=Path, required=True, metavar="DIR", help=text("export.help.adapter"))
    parser.add_argument("--to", choices=TARGETS, required=True, help=text("export.help.to"))
    parser.add_argument("--output", type=Path, metavar="PATH", help=text("export.help.output"))
    parser.add_argument("--base", default="", metavar="BASE", help=text("export.help.base"))
    parser.add_argument("--dtype", choices=DTYPES, help=text("export.help.dtype"))


def run(arguments: argparse.Namespace) -> int:
    """Write, compare, and print what was done."""
    from lora_scripts import exporting
    from lora_scripts.cli._console import Console, quiet_libraries

    order = exporting.Order(
        adapter=arguments.adapter,
        to=arguments.to,
        output=arguments.output,
        base=arguments.base,
        dtype=arguments.dtype,
    )
    quiet_libraries()
    exporting.export(order, Console().say)
    return 0
