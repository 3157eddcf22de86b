"""Draw `examples/style_high_contrast`: 60 icons in a style that the embedded model has never been told of.

``python -m lora_scripts.embedded.training.example --tarballs DIR`` in a checkout, with the npm tarballs of `data.py`
in DIR and the ``embedded`` extra installed; only the Noto one (for the names) and the high-contrast one are read.
The same tarballs give the same pictures and the same `metadata.csv`.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .data import HIGH_CONTRAST, _draw, load_emojis, slug_of, tar_members

FOLDER = Path("examples/style_high_contrast")
NUM_PICTURES = 60
SEED = 7
STYLE_WORDS = "high contrast icon"


def draw_names(names: Sequence[str], count: int = NUM_PICTURES, seed: int = SEED) -> list[str]:
    """Draw `count` of the names, given in emoji.json's order; return them sorted."""
    return sorted(random.Random(seed).sample(list(names), count))


def file_name(name: str) -> str:
    """Return "red-apple.png" for "red apple"."""
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + ".png"


def available(tarballs: Path) -> dict[str, bytes]:
    """Return the SVG of every concept that has a high-contrast icon, by name, in emoji.json's order."""
    icons = tar_members(tarballs / HIGH_CONTRAST, "package/icons/high-contrast/")
    slugs = {emoji.name: slug_of(emoji.codepoints) for emoji in load_emojis(tarballs) if emoji.is_concept}
    return {name: icons[f"{slug}.svg"] for name, slug in slugs.items() if slug and f"{slug}.svg" in icons}


def write_example(tarballs: Path, folder: Path, count: int = NUM_PICTURES) -> list[str]:
    """Write the pictures (64 px, grey) and `metadata.csv` into `folder`, and return the names drawn.

    Pictures of an earlier run are removed first; the licence and README beside them stay.
    """
    icons = available(tarballs)
    names = draw_names(list(icons), count)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    for name in names:
        picture = Image.fromarray(_draw("icon.svg", icons[name]))
        picture.convert("L").save(folder / file_name(name), optimize=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", "prompt"])
        writer.writerows([file_name(name), f"{name}, {STYLE_WORDS}"] for name in names)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_scripts.embedded.training.example")
    parser.add_argument("--tarballs", type=Path, required=True, help="folder of the npm tarballs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where to write (default: {FOLDER})")
    arguments = parser.parse_args()
    names = write_example(arguments.tarballs, arguments.folder)
    print(f"{len(names)} pictures in {arguments.folder}")


if __name__ == "__main__":
    main()
