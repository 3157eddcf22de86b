"""`lora-scripts doctor FOLDER`: what is wrong with a data set, before an hour is spent on it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import messages
from lora_scripts.cli import _config_arguments
from lora_scripts.errors import ConfigError

if TYPE_CHECKING:
    from lora_scripts.cli._console import Console
    from lora_scripts.doctor.run import Examination
    from lora_scripts.doctor.settings import Settings

OK, MUST_FIX = 0, 3
TRIGGER_LEFT_OUT = (("captions", "trigger_missing"), ("captions", "trigger_nowhere"))
KINDS = ("person", "thing", "style")
# (option, least, most)
NUMBERS = (("resolution", 8, 16_384), ("batch_size", 1, 4096), ("max_tokens", 1, 10_000_000))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help=_help("folder"))
    _config_arguments.add(parser, required=False)
    for name, metavar in (("html", "FILE"), ("json", "FILE"), ("held-out", "FOLDER"), ("metadata", "FILE")):
        parser.add_argument(f"--{name}", type=Path, metavar=metavar, help=_help(name.replace("-", "_")))
    for name in ("resolution", "batch-size", "max-tokens"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=_help(name.replace("-", "_")))
    for name, metavar in (("trigger", "WORD"), ("base", "BASE"), ("model", "MODEL")):
        parser.add_argument(f"--{name}", metavar=metavar, help=_help(name))
    parser.add_argument("--kind", choices=KINDS, default="", help=_help("kind"))
    parser.add_argument("--as", choices=("pictures", "texts"), default="", dest="data", help=_help("as_"))
    parser.add_argument("--all", action="store_true", dest="all_ignored", help=_help("all_"))
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--fix", action="store_true", help=_help("fix"))
    what.add_argument("--undo", action="store_true", help=_help("undo"))
    what.add_argument("--ignore", metavar="ID", help=_help("ignore"))
    parser.add_argument("--reason", metavar="TEXT", help=_help("reason"))
    parser.add_argument("--files", action="append", default=[], metavar="GLOB", help=_help("files"))


def _help(name: str) -> str:
    return messages.text(f"doctor.help.{name}").replace("%", "%%")


def run(arguments: argparse.Namespace) -> int:
    """Look, and tell; or undo, or ignore. 3 where something must be fixed.

    Raises:
        LoraScriptsError: in words, where there is nothing to look at or the options do not fit.
    """
    _check(arguments)
    from lora_scripts.cli._console import Console
    from lora_scripts.doctor import run as examinations

    console = Console()
    settings = _settings(arguments, console)
    home = examinations.home(settings.path)
    if arguments.undo:
        return _undo(home, console)
    if arguments.ignore:
        return _ignore(home, arguments, console)
    kind = arguments.data or examinations.kind_of(settings.path)
    for option in ("html", "json"):
        _check_output(getattr(arguments, option), option, kind, settings)
    if arguments.fix and settings.path.is_file():
        raise ConfigError("doctor.no_fix_for_rows", path=settings.path)
    # A trigger that the config names is put in front of every caption in training.
    excused = TRIGGER_LEFT_OUT if arguments.config is not None and arguments.trigger is None else ()

    def examine() -> Examination:
        return examinations.examine(settings, kind=kind, excused=excused, tell=console.say)

    done = examine()
    if arguments.fix and _fix(done, console):
        done = examine()
    _report(done, arguments, console)
    return MUST_FIX if done.must_fix else OK


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that make no sense, all of them before anything is read."""
    if arguments.folder is None and arguments.config is None:
        raise ConfigError("doctor.no_folder")
    if arguments.ignore and not (arguments.reason or "").strip():
        raise ConfigError("doctor.reason_missing", id=messages.printable(arguments.ignore))
    if not arguments.ignore and (arguments.reason is not None or arguments.files):
        option = "--reason" if arguments.reason is not None else "--files"
        raise ConfigError("doctor.reason_alone", option=option)
    for name, least, most in NUMBERS:
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError("doctor.bad_number", option=option, value=value, least=least, most=most)


def _settings(arguments: argparse.Namespace, console: Console) -> Settings:
    """Return what to look at: what the options say, else the config, else the defaults."""
    from lora_scripts.doctor.configured import settings_of, with_base
    from lora_scripts.doctor.settings import Settings

    if arguments.config is not None:
        config = _config_arguments.load(arguments)
        settings = settings_of(config, arguments.config, arguments.folder)
        if config.validation.enabled and len(config.validation.paths) > 1 and arguments.held_out is None:
            console.say("doctor.several_held", path=config.validation.paths[0])
        if settings.base is None and arguments.base is None:
            console.say("doctor.base_elsewhere", base=messages.printable(config.base_model))
    else:
        settings = Settings(arguments.folder)
    if arguments.base is not None:
        settings = with_base(replace(settings, base=Path(arguments.base)), arguments.base, arguments.resolution)
    names = ("held_out", "metadata", "resolution", "batch_size", "max_tokens", "trigger", "model")
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return replace(settings, kind=arguments.kind, **given)


def _check_output(path: Path | None, option: str, kind: str, settings: Settings) -> None:
    """Refuse a report that cannot be written, or that would take the place of data or be read as such."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError("doctor.output_folder", path=path)
    endings = {"html": (".html", ".htm"), "json": (".json",) if kind == "pictures" else ()}[option]
    target = path.resolve()
    sources = [place.resolve() for place in (settings.path, settings.held_out) if place is not None]
    inside = any(target == place or target.is_relative_to(place) for place in sources)
    is_table = settings.metadata is not None and target == settings.metadata.resolve()
    if is_table or (inside and path.suffix.lower() not in endings):
        raise ConfigError("doctor.output_is_data", path=path, folder=settings.path)


def _report(done: Examination, arguments: argparse.Namespace, console: Console) -> None:
    """Print the report and write the files that were asked for."""
    from lora_scripts import files
    from lora_scripts.doctor import report_html, report_json, report_text

    report_text.show(done, console.rich, all_ignored=arguments.all_ignored, saved=arguments.html is not None)
    for path, encode in ((arguments.html, report_html.encode), (arguments.json, report_json.encode)):
        if path is not None:
            files.write_bytes(path, encode(done))
            console.say("doctor.written", path=path)


def _ignore(home: Path, arguments: argparse.Namespace, console: Console) -> int:
    from lora_scripts.data import folder as folders
    from lora_scripts.doctor import ignoring

    folders.walk(home)
    path = ignoring.add(home, ignoring.Entry(arguments.ignore, arguments.reason.strip(), tuple(arguments.files)))
    console.say("doctor.ignored_now", id=arguments.ignore, path=path)
    return OK


def _fix(done: Examination, console: Console) -> bool:
    """Say what will be done and do it; return whether anything was."""
    from lora_scripts.doctor import commands, fixing, journal

    plan = fixing.plan(done.findings, done.settings)
    if not plan.changes:
        console.say("doctor.fix.nothing")
    else:
        console.say("doctor.fix.will", count=len(plan.told))
    for note in (*plan.told, *plan.left):
        console.say(note.code, **note.params)
    if plan.changes:
        journal.perform(done.settings.path, plan.changes)
        command = commands.doctor(done.settings, "--undo")
        console.say("doctor.fix.did", count=len(plan.changes), command=command)
    console.line("")
    return bool(plan.changes)


def _undo(home: Path, console: Console) -> int:
    from lora_scripts.data import folder as folders
    from lora_scripts.doctor import journal

    folders.walk(home)
    restored = journal.undo(home)
    for step in restored:
        console.say("doctor.fix.restored", path=Path(step.path))
    console.say("doctor.fix.undone", count=len(restored))
    return OK
