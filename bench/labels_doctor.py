"""How long the doctor takes for a folder of pictures, and how much memory: 10,000 generated pictures against 1,000.

Each measurement runs in a process of its own, whose largest resident size is read there. One picture in a hundred is a
copy of another, saved again at half the size, so that the search has something to find; all of them must be found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

COUNTS = (1_000, 10_000)
SIDE = 512
COPY_EVERY = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print one line for each count; `--json FILE` keeps the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--examine", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.examine is not None:
        print(json.dumps(examine(chosen.examine)))
        return 0
    measured = []
    for count in chosen.counts:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), count)
            command = [sys.executable, "-m", "bench.labels_doctor", "--examine", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured.append({"pictures": count, **json.loads(done.stdout)})
        print(line(measured[-1]), flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    return 0


def line(measured: dict) -> str:
    """Return one measurement in words."""
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in measured["seconds"].items())
    total = sum(measured["seconds"].values())
    return (
        f"{measured['pictures']} pictures: {total:.0f} s ({steps}), peak {measured['peak_bytes'] / 2**20:.0f} MiB, "
        f"{measured['copies']} copies found"
    )


def examine(folder: Path) -> dict:
    """Run the checks of pictures; return seconds by step, the peak of this process, and the copies found."""
    from lora_scripts.doctor import duplicates, marks, quality, reading, sizes, survey
    from lora_scripts.doctor.settings import Settings
    from lora_scripts.train.memory import peak_bytes

    seconds, began = {}, time.perf_counter()
    seen = survey.survey(Settings(folder))
    seconds["survey"] = time.perf_counter() - began
    copies = 0
    for check in (reading, duplicates, sizes, quality, marks):
        began = time.perf_counter()
        copies += sum(finding.count for finding in check.find(seen) if finding.name == "near")
        seconds[check.__name__.rpartition(".")[2]] = time.perf_counter() - began
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "copies": copies}


def draw(folder: Path, count: int) -> None:
    """Write pictures of coarse and fine shapes, quick to draw and all different."""
    import numpy
    from PIL import Image

    for number in range(count):
        rng = numpy.random.default_rng(number)
        picture = Image.new("RGB", (SIDE, SIDE))
        for side, opacity in ((4, 255), (9, 140), (40, 90)):
            values = Image.fromarray(rng.integers(0, 256, (side, side, 3), numpy.uint8))
            how = Image.Resampling.NEAREST if side == 9 else Image.Resampling.BICUBIC
            layer = values.resize((SIDE, SIDE), how)
            picture = Image.blend(picture, layer, opacity / 255)
        name = f"{number:05d}"
        if number % COPY_EVERY == COPY_EVERY - 1:
            with Image.open(folder / f"{number - COPY_EVERY // 2:05d}.jpg") as other:
                other.resize((SIDE // 2, SIDE // 2)).save(folder / f"{name}.jpg", quality=80)
            continue
        picture.save(folder / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    raise SystemExit(main())
