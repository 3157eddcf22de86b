"""`lora-scripts label --input FOLDER`: a caption for every picture, and a side file that knows whose each one is."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from lora_scripts import messages, units
from lora_scripts.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_scripts.cli._console import Console
    from lora_scripts.data.record import Dropped
    from lora_scripts.labels.options import LabelOptions
    from lora_scripts.labels.outcome import Change, Outcome

SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag an option; what an option may be is checked by the options themselves."""
    from lora_scripts.labels.options import KINDS, METAVAR, LabelOptions, flag

    for name, field in LabelOptions.model_fields.items():
        about: dict[str, Any] = {"dest": name, "help": messages.text(f"label.option.{name}"), "default": None}
        if field.annotation is bool:
            parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, **about)
            continue
        about["metavar"] = METAVAR.get(name, name.upper())
        if field.json_schema_extra:
            about["action"] = "append"
        if name == "dry_run":
            about |= {"nargs": "?", "const": SHOWN}
        parser.add_argument(flag(name), **about)
    parser.add_argument("--show-policy", choices=KINDS, help=messages.text("cli.help.show_policy"))
    parser.add_argument("--show-options", metavar="CAPTIONER", help=messages.text("cli.help.show_options"))


def run(arguments: argparse.Namespace) -> int:
    """Label, and say what was done; or show what would be done, or a policy."""
    from lora_scripts.cli._console import Console
    from lora_scripts.labels import options as choices
    from lora_scripts.labels import policies

    console = Console()
    if arguments.show_policy:
        console.line(policies.text(arguments.show_policy).rstrip())
        return 0
    if arguments.show_options:
        for line in _own_options(arguments.show_options):
            console.line(line)
        return 0
    names = choices.LabelOptions.model_fields
    options = choices.read({name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None})
    _check(options)
    from lora_scripts.labels import pipeline, speaking

    captioner = speaking.captioner(options)
    console.say("label.speaks", title=captioner.title)
    _notes(console, options)
    if options.dry_run:
        _show(console, pipeline.Run(options, captioner).preview(options.dry_run))
        return 0
    with _Talk(console) as talk:
        outcome = pipeline.label(options, captioner, talk)
    _report(console, options, outcome)
    return 0


def _own_options(captioner: str) -> list[str]:
    """Return a line for each option that `--set` takes: key, default and meaning."""
    from lora_scripts import registry

    lines = []
    for key, field in registry.load("captioners", captioner).Config.model_fields.items():
        code = f"captioner.option.{captioner}.{key}"
        default = field.get_default(call_default_factory=True)
        lines.append(f"{key}={default}  {messages.text(code) if messages.has(code) else ''}".rstrip())
    return lines


def _check(options: LabelOptions) -> None:
    """Find what is wrong with folders before a model is loaded."""
    from lora_scripts.data.folder import walk
    from lora_scripts.labels import policies

    walk(options.input)
    policies.load(options.kind, options.policy)
    if options.output.is_dir() and not options.sidecars:
        raise ConfigError("label.output_is_folder", path=options.output)


def _notes(console: Console, options: LabelOptions) -> None:
    """Say what the options leave open."""
    if not options.kind:
        console.say("label.no_kind")
    if options.kind in ("person", "thing") and not options.trigger:
        console.say("label.no_trigger", class_word=options.class_word)


class _Talk:
    """A progress bar on a terminal, else a line every few seconds."""

    def __init__(self, console: Console):
        from rich import progress

        self.console = console
        rate = progress.TextColumn("{task.fields[rate]}")
        columns = (progress.BarColumn(), progress.MofNCompleteColumn(), rate, progress.TimeRemainingColumn())
        terminal = console.rich.is_terminal
        self.bar = progress.Progress(*columns, console=console.rich, transient=True) if terminal else None
        self._task: progress.TaskID | None = None
        self._begun, self._first = time.monotonic(), 0

    def __enter__(self) -> _Talk:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, code: str, **params: object) -> None:
        """Say a sentence."""
        self.console.say(code, **params)

    def advance(self, done: int, total: int) -> None:
        """So many pictures are done; the rate is the mean of this run."""
        rate = done / max(time.monotonic() - self._begun, 1e-9)
        shown = messages.text("label.rate", rate=f"{rate:.1f}")
        if self.bar is None:
            self.console.say(
                "label.progress", done=done, total=total, rate=shown, left=units.format_seconds((total - done) / rate)
            )
            return
        if self._task is None:
            self._task = self.bar.add_task("", total=total, rate=shown)
        self.bar.update(self._task, completed=done, rate=shown)


def _show(console: Console, changes: Sequence[Change]) -> None:
    """Print captions before and after, and who took which words out."""
    if not changes:
        console.say("label.dry_nothing")
    for change in changes:
        written = change.written
        console.line(f"\n{messages.printable(change.name)}")
        console.say("label.dry_before", text=messages.printable(change.before or "-"))
        console.say("label.dry_after", text=written.text, tokens=written.tokens)
        removed = ", ".join(f"{one.text} ({one.rule})" for one in written.removed)
        if removed:
            console.say("label.dry_removed", removed=messages.printable(removed))
    console.line("")
    console.say("label.dry_end")


def _report(console: Console, options: LabelOptions, outcome: Outcome) -> None:
    """Say what was done, what to look at, and what to do next."""
    counts = {"new": outcome.new, "yours": outcome.yours, "machines": outcome.machines}
    doubtful, unreadable = len(outcome.doubtful), len(outcome.unreadable)
    console.say("label.done", **counts, doubtful=doubtful, unreadable=unreadable)
    _problems(console, outcome.unreadable)
    speakers = [f"{speaker} {count}" for speaker, count in sorted(outcome.speakers.items()) if speaker]
    if speakers:
        console.say("label.speakers", speakers=", ".join(speakers))
    if outcome.frequent:
        console.say("label.frequent", count=len(outcome.frequent), phrases=", ".join(outcome.frequent[:SHOWN]))
    worst = sorted(outcome.doubtful)[:SHOWN]
    if worst:
        console.say("label.doubtful", count=doubtful)
    for _, name, reasons in worst:
        console.say("label.doubtful_one", name=messages.printable(name), reasons=reasons)
    if outcome.review is not None:
        _review(console, outcome.review)
    console.say("label.written", output=options.input if options.sidecars else options.output, side=options.side_file)
    console.say("label.next", path=options.input)
    own = options.input / "metadata.csv"
    if not options.sidecars and options.output.resolve() != own.resolve():
        console.say("label.metadata_path", path=options.output)


def _problems(console: Console, unreadable: Sequence[Dropped]) -> None:
    """Name every file that was left out."""
    for problem in unreadable:
        console.say("cli.plan.dropped", reason=messages.text(problem.code, **problem.params))


def _review(console: Console, review: Mapping[str, Any]) -> None:
    """Say how captions find their pictures, and which to look at first."""
    found = round(review["recall_at_1"] * review["captions"])
    console.say(
        "label.review", found=found, count=review["captions"], mrr=f"{review['mrr']:.2f}", judge=review["judge"]
    )
    for name, score, rank in review["order"][:SHOWN]:
        console.say("label.review_one", name=messages.printable(name), score=f"{score:.2f}", rank=f"{rank:g}")
