"""Pictures at each save: the base and the LoRA beside each other, same prompt, same seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.events import Command, Event, Previewed, Saved

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_SIDE = 192
MARGIN = 8


@dataclass(frozen=True)
class Wish:
    """What to draw: prompts, (width, height) in pixels, first seed, sampling steps, guidance."""

    prompts: tuple[str, ...]
    size: tuple[int, int]
    seed: int
    steps: int
    guidance: float


class Preview:
    """Draws at each save into `previews/step-N.png` and copies the last to `previews/before_after.png`.

    Args:
        folder: output_dir/previews.
        at: the planned saves; one made because the run is stopped is not drawn, so that stopping is quick.
        off: context manager in which the adapter has no effect.
        averaged: context manager in which the weights to be exported are live.
        emit: where `Previewed` goes.
    """

    def __init__(
        self,
        folder: Path,
        family: Any,
        wish: Wish,
        *,
        at: Collection[int],
        off: Callable[[], AbstractContextManager],
        averaged: Callable[[], AbstractContextManager],
        emit: Callable[[Event], object],
    ):
        self.folder, self.family, self.wish = folder, family, wish
        self.at, self.off, self.averaged, self.emit = frozenset(at), off, averaged, emit
        self._before: Sequence[Image] | None = None

    def __call__(self, event: Event) -> Command | None:
        """Draw after a save."""
        if isinstance(event, Saved) and event.step in self.at:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step-{event.step}.png"
            if self._before is None:
                with self.off():
                    self._before = self._draw()
            with self.averaged():
                after = self._draw()
            before_after(self._before, after, self.wish.prompts).save(path)
            shutil.copyfile(path, self.folder / "before_after.png")
            (self.folder / "prompts.txt").write_text("\n".join(self.wish.prompts) + "\n", encoding="utf-8")
            self.emit(Previewed(event.step, str(path)))
        return None

    def _draw(self) -> Sequence[Image]:
        wish = self.wish
        return self.family.preview(
            wish.prompts, size=wish.size, seed=wish.seed, steps=wish.steps, guidance=wish.guidance
        )


def before_after(before: Sequence[Image], after: Sequence[Image], prompts: Sequence[str]) -> Image:
    """Lay out two rows, base above, LoRA below, one column a prompt, with the prompts written underneath."""
    from PIL import Image, ImageDraw, ImageFont

    from lora_scripts import messages

    width, height = before[0].size
    factor = max(1, -(-MIN_SIDE // min(width, height)))
    width, height = width * factor, height * factor
    line = 16
    label = 64
    total = (label + len(before) * (width + MARGIN) + MARGIN, 2 * (height + MARGIN) + MARGIN + 3 * line)
    sheet = Image.new("RGB", total, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    english = messages.catalogue("en")
    for row, (pictures, code) in enumerate(((before, "train.label_base"), (after, "train.label_lora"))):
        y = MARGIN + row * (height + MARGIN)
        pen.text((MARGIN, y + height // 2 - 8), english[code], fill="black", font=font)
        for column, picture in enumerate(pictures):
            x = label + MARGIN + column * (width + MARGIN)
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
    for column, prompt in enumerate(prompts):
        x = label + MARGIN + column * (width + MARGIN)
        for number, text in enumerate(_wrap(prompt, font, width)[:3]):
            pen.text((x, 2 * (height + MARGIN) + MARGIN + number * line - 4), text, fill="black", font=font)
    return sheet


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Break a prompt into lines; letters that the built-in font lacks are shown as question marks."""
    lines = [""]
    for word in text.encode("latin-1", "replace").decode("latin-1").split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
