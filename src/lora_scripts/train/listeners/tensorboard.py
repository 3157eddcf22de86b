"""TensorBoard under output_dir/logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_scripts.events import Command, EpochEnded, Evaluated, Event, Failed, Finished, Previewed, Stepped


class TensorBoard:
    """Scalars at every step, previews as pictures.

    Tags: train/loss, train/learning_rate/<component>, train/gradient_norm, train/update_norm, train/memory_gib,
    train/seconds_per_step, epoch/loss, validation/loss, preview.

    Args:
        folder: output_dir/logs.
        step: the step the run starts from; later points of an interrupted run are hidden.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None, flush_secs=10)

    def __call__(self, event: Event) -> Command | None:
        """Write the event's points."""
        if isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, EpochEnded):
            self.writer.add_scalar("epoch/loss", event.loss, event.step)
        elif isinstance(event, Evaluated):
            self.writer.add_scalar("validation/loss", event.loss, event.step)
        elif isinstance(event, Previewed):
            self._picture(event)
        elif isinstance(event, Finished | Failed):
            self.writer.close()
        return None

    def _step(self, event: Stepped) -> None:
        scalars = {
            "train/loss": event.loss,
            "train/gradient_norm": event.gradient_norm,
            "train/update_norm": event.update_norm,
            "train/memory_gib": event.memory / 2**30,
            "train/seconds_per_step": event.seconds,
        }
        scalars |= {f"train/learning_rate/{component}": rate for component, rate in event.rates.items()}
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, event.step)

    def _picture(self, event: Previewed) -> None:
        import numpy as np
        from PIL import Image

        if not event.path.endswith(".png"):
            return
        with Image.open(event.path) as picture:
            self.writer.add_image("preview", np.asarray(picture.convert("RGB")), event.step, dataformats="HWC")
        self.writer.flush()
