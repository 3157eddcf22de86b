"""One row of a file as the checks see it, whatever it is learned as."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """One row of a file, whatever it is learned as.

    Attributes:
        name: "data.jsonl:12", for findings.
        file: what stands before the colon.
        asked: what the row's user says, all turns.
        answers: what is learned of it: the assistant's turns; for raw text the text.
        rejected: what a pair's worse answer says, else "".
        label: the class that it teaches, "" where it teaches none.
        liked: whether the answer was liked, None where nobody says so.
        group: of one customer or thread.
        silent: an assistant's turn is blank.
    """

    name: str
    file: str
    asked: str
    answers: tuple[str, ...]
    rejected: str = ""
    label: str = ""
    liked: bool | None = None
    group: str = ""
    silent: bool = False

    @property
    def whole(self) -> str:
        """Everything that is said, without what the system is told."""
        return "\n".join(part for part in (self.asked, *self.answers, self.rejected) if part)

    @property
    def topic(self) -> str:
        """What near-duplicates are compared by: of a row with a label the message alone."""
        return self.asked if self.label else self.whole
