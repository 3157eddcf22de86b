"""Is it good enough: nearest real Noto picture of 100 generated names, and grids to look at."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .data import load_pictures

NUM_NAMES = 100
STEPS = 20
GUIDANCE = 3.0
CELLS = 16


def features(pictures: np.ndarray) -> np.ndarray:
    """(n, 64, 64, 3) uint8 -> (n, 768) float: the mean colour of 16 x 16 cells."""
    n, size = pictures.shape[0], pictures.shape[1] // CELLS
    cells = pictures.reshape(n, CELLS, size, CELLS, size, 3).mean(axis=(2, 4))
    return cells.reshape(n, -1) / 255


def generate(pipeline, prompts: list[str], *, seed: int = 0, batch: int = 50) -> np.ndarray:
    """One picture a prompt, each from its own generator: (n, 64, 64, 3) uint8."""
    made = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        output = pipeline(
            chunk, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="np"
        )
        made.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(made)


def grid(pictures: np.ndarray, columns: int) -> Image.Image:
    """Lay pictures out in rows of `columns`."""
    rows = -(-len(pictures) // columns)
    size = pictures.shape[1]
    sheet = np.full((rows * size, columns * size, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, columns)
        sheet[y * size : (y + 1) * size, x * size : (x + 1) * size] = picture
    return Image.fromarray(sheet)


def evaluate(work: Path, folder: Path, seed: int = 7) -> dict:
    """Print and return top-1 and top-5 of 100 names drawn at random; write `grid.png` and `grid_styles.png`."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pictures, rows = load_pictures(work)
    noto = [(picture, row["name"]) for picture, row in zip(pictures, rows, strict=True) if row["style"] == "noto"]
    gallery = features(np.stack([picture for picture, _ in noto]))
    names = [name for _, name in noto]
    concepts = (folder / "concepts.txt").read_text().split("\n")[:-1]
    chosen = random.Random(seed).sample(concepts, NUM_NAMES)
    made = generate(pipeline, chosen)
    distances = ((features(made)[:, None] - gallery[None]) ** 2).sum(-1)
    ranks = [[names[i] for i in row.argsort()[:5]] for row in distances]
    top1 = sum(rank[0] == name for rank, name in zip(ranks, chosen, strict=True))
    top5 = sum(name in rank for rank, name in zip(ranks, chosen, strict=True))
    grid(made, 10).save(folder / "grid.png", optimize=True)
    styled = random.Random(seed + 1).sample(concepts, 16)
    prompts = [name + suffix for suffix in ("", ", flat style", ", 3d style") for name in styled]
    grid(generate(pipeline, prompts), 16).save(folder / "grid_styles.png", optimize=True)
    result = {
        "gallery": len(names),
        "names": NUM_NAMES,
        "top1": top1,
        "top5": top5,
        "seed": seed,
        "missed": [name for rank, name in zip(ranks, chosen, strict=True) if name not in rank],
    }
    print(json.dumps(result))
    return result
