"""The command line: one file a verb; the folder is the list.

A verb's module defines `add_arguments(parser)` and `run(arguments) -> int`; its one-line help stands in the message
catalogue under `cli.verb.<name>`. A verb that is a word of Python's own has "_" behind its file's name; "-" is "_"
in it.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_scripts import messages
from lora_scripts.errors import LoraScriptsError
from lora_scripts.redaction import hide

OK, INTERNAL, INTERRUPTED = 0, 1, 130

# What the libraries would print between our lines; a user's own setting wins.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def verbs() -> list[str]:
    """Return the names of all verbs."""
    return sorted(
        path.stem.rstrip("_").replace("_", "-")
        for path in Path(__file__).parent.glob("*.py")
        if not path.stem.startswith("_")
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; an error is one sentence on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # It tells about kernels that nothing here uses, in the middle of our lines.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser(words).parse_args(words)
        return arguments.run(arguments)
    except LoraScriptsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(messages.text("cli.interrupted"), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
        return OK
    except Exception as error:  # noqa: BLE001 - the last line of defence: a sentence, not a traceback
        return _internal(error)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; only the verb that is asked for adds its arguments."""
    parser = argparse.ArgumentParser(prog="lora-scripts", description=messages.text("cli.about"))
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    asked = next((word for word in words if not word.startswith("-")), None)
    for name in verbs():
        sub = commands.add_parser(name, help=messages.text(f"cli.verb.{name.replace('-', '_')}"))
        if name == asked:
            module = importlib.import_module(
                f"lora_scripts.cli.{name.replace('-', '_')}{'_' * keyword.iskeyword(name)}"
            )
            sub.description = messages.text(f"cli.verb.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _version() -> str:
    from lora_scripts import __version__

    return __version__


def _internal(error: Exception) -> int:
    """Tell about a fault of ours, or of the machine, and where its trace is."""
    import traceback

    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    path = Path("lora-scripts-error.log")
    try:
        path.write_text(hide("".join(traceback.format_exception(error))), encoding="utf-8")
    except OSError:
        traceback.print_exception(error)
    first = hide(str(error).strip().split("\n")[0][:300])
    code = "cli.out_of_memory" if memory else "cli.internal"
    print(messages.text(code, kind=type(error).__name__, reason=first, path=path), file=sys.stderr)
    return 4 if memory else INTERNAL
