"""TensorBoard under output_dir/logs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lora_scripts import messages
from lora_scripts.events import Command, EpochEnded, Evaluated, Event, Previewed, Stepped

_NUMBERS = count()


class TensorBoard:
    """Scalars at every step, previews as pictures.

    Tags: train/loss, train/learning_rate/<component>, train/gradient_norm, train/update_norm, train/memory_gib,
    train/seconds_per_step, epoch/loss, validation/loss, preview.

    Every event is appended at once and by this thread: torch's own writer has a thread of its own, which dies with a
    traceback when the disk is full or the folder is gone.

    Args:
        folder: output_dir/logs.
        step: the step the run starts from; later points of an interrupted run are hidden.
        warn: told once, as a sentence, when nothing can be written; training goes on.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]):
        self.folder, self.first, self.warn = folder, step, warn
        self._file: Path | None = None
        self._warned = False

    def __call__(self, event: Event) -> Command | None:
        """Write the event's points."""
        if isinstance(event, Stepped):
            self._add(event.step, _of_step(event))
        elif isinstance(event, EpochEnded):
            self._add(event.step, {"epoch/loss": event.loss})
        elif isinstance(event, Evaluated):
            self._add(event.step, {"validation/loss": event.loss})
        elif isinstance(event, Previewed) and event.path.endswith(".png"):
            self._add(event.step, {"preview": Path(event.path)})
        return None

    def _add(self, step: int, points: Mapping[str, float | Path]) -> None:
        """Append points to the file; after a failure the next ones begin another, since the end of this may be torn."""
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.summary.writer.record_writer import RecordWriter

        try:
            records = [Record(step=step, wall_time=time.time(), summary=_summary(*point)) for point in points.items()]
            if self._file is None or not self._file.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file, records = self._new_file(), [*self._opening(), *records]
            with self._file.open("ab") as file:
                writer = RecordWriter(file)
                for record in records:
                    writer.write(record.SerializeToString())
        except OSError as error:
            self._file = None
            if not self._warned:
                self._warned = True
                self.warn(messages.text("train.log_gap", path=self.folder, reason=error.strerror or str(error)))

    def _new_file(self) -> Path:
        place = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        return self.folder / f"events.out.tfevents.{place}"

    def _opening(self) -> list[Any]:
        """Return what a file begins with: its format, and from which step on earlier files' points are hidden."""
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog

        opening = [Record(wall_time=time.time(), file_version="brain.Event:2")]
        if self.first:
            start = SessionLog(status=SessionLog.START)
            opening.append(Record(step=self.first + 1, wall_time=time.time(), session_log=start))
            # A further file of this run hides nothing.
            self.first = 0
        return opening


def _of_step(event: Stepped) -> dict[str, float]:
    scalars = {
        "train/loss": event.loss,
        "train/gradient_norm": event.gradient_norm,
        "train/update_norm": event.update_norm,
        "train/memory_gib": event.memory / 2**30,
        "train/seconds_per_step": event.seconds,
    }
    return scalars | {f"train/learning_rate/{component}": rate for component, rate in event.rates.items()}


def _summary(tag: str, value: float | Path) -> Any:
    """Return a point as TensorBoard stores it: a number, or the picture of a file."""
    from torch.utils.tensorboard import summary

    if not isinstance(value, Path):
        return summary.scalar(tag, value)
    import numpy
    from PIL import Image

    with Image.open(value) as picture:
        return summary.image(tag, numpy.asarray(picture.convert("RGB")), dataformats="HWC")
