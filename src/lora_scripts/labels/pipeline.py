"""The use-case `label`: a folder of pictures in, a caption for each out, and a side file that knows whose it is.

What the model said is in the side file before the output is touched; the output is replaced whole, at the end and every
half minute. So a run may be killed at any moment: the same command reads what was said and goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_scripts import messages
from lora_scripts.contracts import Captioner, Label
from lora_scripts.data.folder import no_pictures, sentences, walk
from lora_scripts.data.record import Note
from lora_scripts.errors import DataError, LockError, MachineError, Stopped
from lora_scripts.events import Started
from lora_scripts.labels import lines, policies, quality, tokens
from lora_scripts.labels.decisions import ADDING, Decision, Target, decide
from lora_scripts.labels.existing import Captions, look
from lora_scripts.labels.journal import is_person
from lora_scripts.labels.options import LabelOptions
from lora_scripts.labels.outcome import Change, Outcome, Tell
from lora_scripts.labels.reading import Seen, stream
from lora_scripts.labels.rules import Rules, Written, counted
from lora_scripts.runs import RunFolder
from lora_scripts.train.listeners.signals import Signals

FLUSH_SECONDS = 30.0
MOST_WAITING = 1000
FEWEST_FOR_FREQUENCY = 10
"""Of fewer captions, a share says nothing."""


def label(options: LabelOptions, captioner: Captioner, tell: Tell) -> Outcome:
    """Label a folder.

    Raises:
        ConfigError, DataError, MachineError: in words; what stood in the output is whole.
        LockError: another process labels into the same folder.
        Stopped: a signal, after what was labelled is written.
    """
    folder = options.input if options.sidecars else options.output.parent
    signals = Signals()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(RunFolder(folder).owned())
        except LockError as error:
            raise LockError("label.locked", **error.params) from error
        RunFolder(folder).sweep()
        run = Run(options, captioner)
        signals(Started(0, run.found, 1))
        stack.callback(signals.restore)
        return run.write(tell, lambda: signals.exit_code)


@dataclass
class _Item:
    """A picture, and what is to be done with its captions."""

    seen: Seen
    decision: Decision

    @property
    def shown(self) -> bool:
        """Whether the model must see it."""
        return bool(self.decision.targets) and not self.decision.known


class Run:
    """One labelling of one folder."""

    def __init__(self, options: LabelOptions, captioner: Captioner):
        self.options, self.captioner = options, captioner
        folder = walk(options.input)
        if not folder.pictures:
            raise no_pictures(options.input, folder)
        policy = policies.load(options.kind, options.policy)
        self.rules = Rules(options, policy, tokens.limit(options), tokens.counter(options), captioner.identity)
        self.key = self.rules.key
        self.captions: Captions = look(options, folder.pictures, folder.others)
        self.journal = self.captions.journal
        problems, output = self.captions.problems, self.captions.output
        refused = {name: problems.get(name) or output.refuses(name) for name in folder.pictures}
        self.pictures = [name for name in folder.pictures if refused[name] is None]
        self.outcome = Outcome(unreadable=[*folder.skipped, *filter(None, refused.values())])
        self.found, self.passed = len(folder.pictures), len(folder.pictures) - len(self.pictures)
        self.readable = 0
        self.batch = options.batch_size or captioner.batch_size
        self.touched: set[str] = set()
        self._flushed = time.monotonic()

    def write(self, tell: Tell, stop: Callable[[], int]) -> Outcome:
        """Label, write, and return what was done.

        Args:
            stop: an exit code once the run shall end behind the batch it is at, else 0.
        """
        try:
            for items in self._chunks(lambda: bool(stop())):
                self._settle(items)
                self._flush_sometimes()
                tell.advance(self.passed, self.found)
            if not stop():
                self._drop_frequent()
            self.captions.output.flush()
            if code := stop():
                raise Stopped("label.stopped", exit_code=code, count=self.outcome.new, path=self.options.side_file)
            if self.journal.open:
                self.journal.add([{"kind": "finished"}])
            self._review(tell, stop)
        except BaseException:
            # What was labelled is in the side file; with luck it is in the output too.
            with contextlib.suppress(MachineError):
                self.captions.output.flush()
            raise
        finally:
            self.journal.close()
        self._none_read()
        return self.outcome

    def preview(self, count: int) -> list[Change]:
        """Return what would become of the first captions that would change; nothing is written."""
        changes: list[Change] = []
        self.batch = min(self.batch, count)
        for items in self._chunks(lambda: len(changes) >= count):
            for item, said in self._said(items):
                for target in item.decision.targets:
                    changes.append(Change(item.seen.name, target.before, self._written(said, target)))
        self._none_read()
        return changes[:count]

    def _chunks(self, enough: Callable[[], bool]) -> Iterator[list[_Item]]:
        """Yield pictures in order; of those that must be shown to the model, one batch in each list."""

        def decided(name: str, sha256: str) -> Decision:
            return decide(self.captions, name, sha256, self.options.existing, self.key)

        def decodes(name: str, sha256: str) -> bool:
            decision, entry = decided(name, sha256), self.journal.entries.get(name)
            return (bool(decision.targets) and not decision.known) or entry is None or entry.sha256 != sha256

        items: list[_Item] = []
        waiting = 0
        with contextlib.closing(stream(self.options.input, self.pictures, decodes, self.batch)) as all_seen:
            for seen in all_seen:
                self.passed += 1
                if enough():
                    return
                if seen.problem is not None:
                    self.outcome.unreadable.append(seen.problem)
                    continue
                self.readable += 1
                item = _Item(seen, decided(seen.name, seen.sha256))
                if not item.shown:
                    item.seen = replace(seen, picture=None)
                items.append(item)
                waiting += item.shown
                if waiting >= self.batch or len(items) >= MOST_WAITING:
                    yield items
                    items, waiting = [], 0
        if items and not enough():
            yield items

    def _said(self, items: Sequence[_Item]) -> list[tuple[_Item, Label]]:
        """Return what the model says of every picture that is to be labelled, or said before."""
        shown = [item for item in items if item.shown]
        pictures = [item.seen.picture for item in shown if item.seen.picture is not None]
        labels = self.captioner.caption(pictures) if pictures else []
        new = {item.seen.name: lines.rounded(said) for item, said in zip(shown, labels, strict=True)}
        names = [(item, item.seen.name) for item in items if item.decision.targets]
        return [(item, new[name] if name in new else self.journal.label(name)) for item, name in names]

    def _written(self, said: Label, target: Target, frequent: frozenset[str] = frozenset()) -> Written:
        adding = self.options.existing in ADDING and target.before
        return self.rules.write(said, frequent=frequent, standing=target.before if adding else None)

    def _settle(self, items: Sequence[_Item]) -> None:
        """Label a chunk: first into the side file, then into the output."""
        said = {item.seen.name: label for item, label in self._said(items)}
        rows: list[dict[str, object]] = []
        puts: list[tuple[str, int | None, str]] = []
        for item in items:
            name, decision = item.seen.name, item.decision
            texts = dict(enumerate(decision.standing))
            rows += self._kept_rows(item)
            for target in decision.targets:
                written = self._written(said[name], target)
                rows += self._spoken_rows(item, said[name], written, target)
                texts[target.index or 0] = written.text
            puts += self._puts(item, texts)
            self._count(item, said.get(name))
        self.journal.add(rows)
        for name, index, text in puts:
            self.captions.output.put(name, index, text)

    def _kept_rows(self, item: _Item) -> list[dict[str, object]]:
        """Return lines of captions that stay, where the side file does not have them yet."""
        name, sha256, decision = item.seen.name, item.seen.sha256, item.decision
        written = {target.index for target in decision.targets}
        doubts = [Note("label.doubt_changed")] if decision.changed else []
        rows = []
        for index, text in enumerate(decision.standing):
            author = self.captions.author(name, text)
            if index not in written and not self.journal.knows(name, text, sha256):
                rows.append(lines.kept(name, sha256, text, author, doubts if is_person(author) else []))
        if doubts:
            self._doubt(name, None, doubts)
        return rows

    def _spoken_rows(self, item: _Item, said: Label, written: Written, target: Target) -> list[dict[str, object]]:
        """Return the line of a caption that was written, where the side file does not have it yet."""
        name, sha256 = item.seen.name, item.seen.sha256
        if written.doubts:
            self._doubt(name, said.sure, written.doubts)
        if item.decision.known and self.journal.knows(name, written.text, sha256):
            return []
        adding = self.options.existing in ADDING
        return [lines.spoken(name, sha256, said, written, self.captioner, self.key, target, adding)]

    def _puts(self, item: _Item, texts: dict[int, str]) -> list[tuple[str, int | None, str]]:
        """Return what must be written into the output: what differs, or stood elsewhere."""
        name = item.seen.name
        if name in self.captions.fixed:
            return []
        if not self.captions.standing(name)[1]:
            return [(name, None, text) for text in texts.values()]
        return [(name, index, text) for index, text in texts.items() if text != item.decision.standing[index]]

    def _count(self, item: _Item, said: Label | None) -> None:
        name, decision, outcome = item.seen.name, item.decision, self.outcome
        if said is not None:
            outcome.new += 1
            outcome.speakers[said.speaker] += 1
            self.touched.add(name)
        elif any(is_person(self.captions.author(name, text)) for text in decision.standing):
            outcome.yours += 1
        else:
            outcome.machines += 1

    def _doubt(self, name: str, sure: float | None, doubts: Sequence[Note]) -> None:
        reasons = " ".join(messages.text(note.code, **note.params) for note in doubts)
        self.outcome.doubtful.append((0.5 if sure is None else sure, name, reasons))

    def _flush_sometimes(self) -> None:
        if self.options.sidecars or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.captions.output.flush()
            self._flushed = time.monotonic()

    def _drop_frequent(self) -> None:
        """Leave phrases out that too many captions have: that is known only once all are labelled.

        Only captions of this run change, and of one that was cut off before it came to this.
        """
        entries = self.journal.entries
        mine = [name for name in self.pictures if name in entries and entries[name].key == self.key]
        policy = self.rules.policy
        if not policy.frequent_groups or policy.frequent >= 1 or len(mine) < FEWEST_FOR_FREQUENCY:
            return
        fresh = [name for name in mine if name in self.touched or entries[name].run == self.journal.runs]
        frequent = counted(self.rules, map(self.journal.label, mine)) if fresh else frozenset()
        self.outcome.frequent = tuple(sorted(frequent))
        for name in fresh if frequent else ():
            self._rewrite(name, frequent)

    def _rewrite(self, name: str, frequent: frozenset[str]) -> None:
        texts, inside = self.captions.standing(name)
        row = self.journal.row(name)
        if len(texts) != 1 or not inside or self.journal.author(name, texts[0]) != row["author"]:
            return
        said = self.journal.label(name)
        target = Target(0, row["before"], row["before_author"] or "")
        written = self._written(said, target, frequent)
        # A caption that would say nothing any more had better say what many do.
        if written.text == texts[0] or any(note.code == "label.doubt_empty" for note in written.doubts):
            return
        if not self.journal.knows(name, written.text, row["sha256"]):
            adding = self.options.existing in ADDING
            line = lines.spoken(name, row["sha256"], said, written, self.captioner, self.key, target, adding)
            self.journal.add([line])
        self.captions.output.put(name, 0, written.text)

    def _review(self, tell: Tell, stop: Callable[[], int]) -> None:
        """Compare captions with pictures, where the captioner can."""
        if not self.options.review or not getattr(self.captioner, "judges_captions", False):
            return
        texts = {name: self.captions.standing(name)[0][:1] for name in self.pictures}
        pairs = [(name, text[0]) for name, text in texts.items() if text and text[0].strip()]
        judge: Any = self.captioner
        row = quality.review(self.options.input, pairs, judge, (tell, stop))
        self.outcome.review = row
        if row is not None and row != self.journal.review:
            self.journal.add([row])

    def _none_read(self) -> None:
        if not self.readable and self.passed >= self.found:
            reasons = sentences(self.outcome.unreadable)
            raise DataError("label.none_readable", path=self.options.input, count=self.found, reasons=reasons)
