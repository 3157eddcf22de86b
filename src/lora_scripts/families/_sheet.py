"""Two rows of pictures with their prompts: the base above, the LoRA below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_SIDE = 192
MARGIN = 8


def write(before: Sequence[Image], after: Sequence[Image], prompts: Sequence[str], stem: Path) -> Path:
    """Write the sheet under `stem` with ".png", and the prompts as text beside it; return the picture's path."""
    path = stem.with_name(f"{stem.name}.png")
    before_after(before, after, prompts).save(path)
    path.with_name("prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return path


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
