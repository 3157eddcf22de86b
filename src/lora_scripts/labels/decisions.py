"""What becomes of a picture's captions: kept, labelled, or written again from what was said of it before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.labels.existing import Captions
from lora_scripts.labels.journal import digest, is_person

ADDING = ("append", "prepend")


@dataclass(frozen=True)
class Target:
    """A caption that is to be written.

    Attributes:
        index: which of the picture's captions it replaces; None where it has none.
        before, author: what stands there, and whose it is.
    """

    index: int | None = None
    before: str | None = None
    author: str = ""


@dataclass(frozen=True)
class Decision:
    """What is to be done with a picture.

    Attributes:
        targets: captions to write; empty where all are kept.
        standing: its captions now.
        known: what the model says of this very picture by these rules is written down already.
        changed: a person's caption is kept, though the picture is another one than it was written for.
    """

    targets: tuple[Target, ...]
    standing: Sequence[str]
    known: bool = False
    changed: bool = False


def decide(captions: Captions, name: str, sha256: str, existing: str, key: str) -> Decision:
    """Decide by the mode, by whose the captions are, and by whether the picture is the one they were written for."""
    standing, _ = captions.standing(name)
    entry = captions.journal.entries.get(name)
    same = entry is not None and entry.sha256 == sha256
    known = entry is not None and same and entry.key == key
    changed = entry is not None and bool(entry.sha256) and not same
    if name in captions.fixed:
        return Decision((), standing)
    if not standing:
        return Decision((Target(),), (), known)
    targets = []
    for index, text in enumerate(standing):
        author = captions.author(name, text)
        # A line of the side file that a kill kept out of the output: what it replaces still stands.
        stands = entry is not None and digest(text) in entry.texts
        behind = entry is not None and not stands and not is_person(author)
        if _again(existing, is_person(author), known and stands, changed or behind):
            targets.append(Target(index, text, author))
    kept = len(targets) < len(standing) and any(is_person(captions.author(name, text)) for text in standing)
    return Decision(tuple(targets), standing, known, changed and kept)


def _again(existing: str, persons: bool, done: bool, stale: bool) -> bool:
    """Say whether a caption is to be written anew.

    Args:
        persons: any of it is a person's.
        done: these rules and this model wrote it, for this very picture.
        stale: it is a machine's and of another picture, or already replaced in the side file.
    """
    if existing == "keep":
        return stale and not persons
    if existing == "relabel":
        return not persons and not done
    return not done
