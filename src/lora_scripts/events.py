"""What the trainer tells its listeners, and what they may answer.

Each event is a frozen dataclass; `events.jsonl` holds them one a line. A listener is any callable that takes an
event and may return a `Command`; the loop obeys it after the current step.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SCHEMA_VERSION = 1


class Command(enum.Enum):
    """What a listener may ask of the loop."""

    SAVE = "save"
    STOP = "stop"


@dataclass(frozen=True)
class Started:
    """The run begins at `step` of `total` (0 unless resumed)."""

    step: int
    total: int
    epochs: int


@dataclass(frozen=True)
class Stepped:
    """One optimizer step is done.

    Attributes:
        step: optimizer steps done so far, from 1.
        epoch: the epoch this step belongs to, from 1.
        loss: weighted mean loss of the step's whole batch.
        rates: learning rate by component.
        gradient_norm: L2 norm over all trained tensors, before clipping.
        update_norm: L2 norm of what the step added to the trained tensors.
        seconds: wall time of the step.
        memory: resident bytes of this process, or allocated bytes of the accelerator.
    """

    step: int
    epoch: int
    loss: float
    rates: Mapping[str, float]
    gradient_norm: float
    update_norm: float
    seconds: float
    memory: int


@dataclass(frozen=True)
class Skipped:
    """A step without an update: its loss or gradient was not finite; `ids` are examples it was made of."""

    step: int
    ids: str


@dataclass(frozen=True)
class RolledBack:
    """The run went back to `step` after step `failed` was not finite; the rates are `factor` of what they would be."""

    step: int
    failed: int
    factor: float


@dataclass(frozen=True)
class Shrunk:
    """The memory was full in the step after `step`: micro-batches hold `after` examples at most from here on."""

    step: int
    before: int
    after: int


@dataclass(frozen=True)
class Asked:
    """Somebody asked for something after `step`: "save", "preview" or "stop"."""

    step: int
    what: str


@dataclass(frozen=True)
class EpochEnded:
    """All steps of an epoch are done, or all of the run that fell into it; `loss` is their mean."""

    epoch: int
    step: int
    loss: float


@dataclass(frozen=True)
class Evaluated:
    """Held-out loss, the task's numbers by name, and what they were made from."""

    step: int
    loss: float
    logs: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Previewed:
    """A preview file was written for the weights at `step`."""

    step: int
    path: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete and verified."""

    step: int
    path: str


@dataclass(frozen=True)
class Advised:
    """The numbers show something the user should know; said once a run."""

    step: int
    code: str
    params: Mapping[str, object]


@dataclass(frozen=True)
class Finished:
    """All steps are done, or a stop was obeyed at `step`."""

    step: int
    total: int
    stopped: bool


@dataclass(frozen=True)
class Failed:
    """The run ended with an error; the trace is in the log."""

    step: int
    error: str


Event = (
    Started
    | Stepped
    | Skipped
    | RolledBack
    | Shrunk
    | Asked
    | EpochEnded
    | Evaluated
    | Previewed
    | Saved
    | Advised
    | Finished
    | Failed
)
Listener = Callable[[Event], Command | None]
