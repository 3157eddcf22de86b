"""Rows whose label is probably wrong: what the other rows would call them.

Confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068): a row counts as another class where that class's
probability, by a model that has not seen the row, reaches the mean self-confidence of the class (eq. 2), and as its own
where no other does. Ranked by the probability of the given label (section 3.2, "self-confidence").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.texts.privacy import quoted

if TYPE_CHECKING:
    from lora_scripts.doctor.texts.text import Text

MOST_SHOWN = 60
FEWEST_ROWS, FEWEST_A_LABEL = 50, 5
"""Rows from which a classifier learns anything, and rows of a label from which it can learn that."""
MOST_LABELS = 100
SURE, UNSURE = 0.5, 0.2
"""Least probability of the other label, and most of the given one."""
SURE_ANYWAY = 0.7
"""Enough for any label: where nearly all rows are right, the mean self-confidence is higher than a wrong row gets."""
FEWEST_AGREED = 0.6
"""Share of the rows that the classifier gets as given, below which its doubts are many and mostly wrong."""


def find(texts: Sequence[Text]) -> list[Finding]:
    """Return the finding about labels that the other rows contradict, the most doubtful first."""
    import numpy as np

    from lora_scripts.doctor.texts import classifier

    counts = Counter(text.label for text in texts if text.label)
    known = sorted(label for label, n in counts.items() if n >= FEWEST_A_LABEL)
    rows = [text for text in texts if text.label in set(known)]
    if len(rows) < FEWEST_ROWS or not 2 <= len(known) <= MOST_LABELS:
        return []
    number = {label: i for i, label in enumerate(known)}
    labels = np.array([number[text.label] for text in rows])
    shares = classifier.judge([text.asked for text in rows], labels)
    every = np.arange(len(rows))
    own = shares[every, labels]
    thresholds = np.array([min(own[labels == i].mean(), SURE_ANYWAY) for i in range(len(known))])
    others = np.where(shares >= thresholds, shares, 0)
    others[every, labels] = 0
    best = others.argmax(axis=1)
    doubtful = np.flatnonzero((others[every, best] >= SURE) & (own <= UNSURE))
    if not len(doubtful):
        return []
    ranked = doubtful[np.argsort(own[doubtful], kind="stable")]
    agreed = float((shares.argmax(axis=1) == labels).mean())
    # Where the classifier itself is often wrong, so are its doubts: they only say what to read first.
    name, severity = ("label_doubtful", Severity.SHOULD) if agreed >= FEWEST_AGREED else ("label_review", Severity.GOOD)
    items = [
        Item((rows[i].name,), _detail(rows[i], known[best[i]], float(shares[i, best[i]]))) for i in ranked[:MOST_SHOWN]
    ]
    params = {"total": len(rows), "agreed": f"{agreed:.0%}", "shown": len(items)}
    return [Finding("texts", name, severity, len(ranked), params, items)]


def _detail(text: Text, likely: str, share: float) -> Note:
    params = {
        "given": quoted(text.label),
        "likely": quoted(likely),
        "share": f"{share:.2f}",
        "text": quoted(text.asked),
    }
    return Note("texts.label_doubtful.detail", params)
