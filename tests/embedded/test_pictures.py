"""The embedded model: an ordinary folder of the promised size that plain diffusers loads and that knows its names."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_scripts import embedded

FOLDER = Path(embedded.__file__).parent / "pictures"


def test_sizes_and_names():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 36_000_000
    assert all(path.stat().st_size <= 15_000_000 for path in files)
    assert not [path.name for path in files if ".fp16" in path.name or path.suffix in (".bin", ".ckpt", ".pt")]
    concepts = (FOLDER / "concepts.txt").read_text().splitlines()
    assert len(concepts) == len(set(concepts)) >= 300 and all(name == name.lower() for name in concepts)
    assert {"README.md", "manifest.jsonl", "training_log.jsonl", "grid.png"} <= {path.name for path in files}


def test_the_unet_has_never_seen_the_quickstarts_style():
    rows = [json.loads(line) for line in (FOLDER / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) > 3000
    assert {row["used_by"] for row in rows if row["style"] == "high contrast"} == {"vae"}
    assert {row["style"] for row in rows if row["used_by"] == "vae+unet"} == {"noto", "flat", "3d"}


def test_the_log_falls():
    rows = [json.loads(line) for line in (FOLDER / "training_log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["stage"] == "unet"]
    assert len(losses) > 30 and sum(losses[-5:]) / 5 < 0.5 * sum(losses[:5]) / 5


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_plain_diffusers_draws_what_it_is_asked_for(pipeline):
    """A heart is red where a leaf is green and the sky is white: colours of four names, by plain from_pretrained."""
    names = ["heavy black heart", "four leaf clover", "blue heart", "sunflower"]
    generators = [torch.Generator().manual_seed(i) for i in range(len(names))]
    made = pipeline(names, num_inference_steps=20, guidance_scale=3.0, generator=generators, output_type="np").images
    red, green, blue = (made[..., channel] for channel in range(3))
    inside = (made.min(axis=-1) < 0.6).astype(float)
    mean = [
        [float((channel[i] * inside[i]).sum() / inside[i].sum()) for channel in (red, green, blue)]
        for i in range(len(names))
    ]
    assert np.argmax(mean[0]) == 0 and np.argmax(mean[1]) == 1 and np.argmax(mean[2]) == 2
    assert mean[3][2] == min(mean[3])
    assert (made[:, :4, :4].mean(axis=(1, 2, 3)) > 0.9).all()


def style(pictures: np.ndarray) -> tuple[float, float]:
    """(mean colour: max - min over RGB, share of black: max < 0.25)."""
    return float((pictures.max(-1) - pictures.min(-1)).mean()), float((pictures.max(-1) < 0.25).mean())


@pytest.mark.slow
def test_the_quickstart_moves_the_style_in_plain_diffusers(tmp_path, pipeline):
    """README's first command, then 32 names outside the 60: colour falls by more than half, black at least doubles."""
    import subprocess
    import sys
    import time

    root = Path(__file__).resolve().parents[2]
    started = time.perf_counter()
    command = [
        sys.executable,
        "train.py",
        "--config",
        "configs/quickstart.yaml",
        "--set",
        f"output_dir={tmp_path / 'q'}",
    ]
    subprocess.run(command, cwd=root, check=True)
    assert time.perf_counter() - started < 300
    table = (root / "examples" / "style_high_contrast" / "metadata.csv").read_text().splitlines()[1:]
    trained = {line.split(",")[1].strip('"') for line in table}
    concepts = [n for n in (FOLDER / "concepts.txt").read_text().splitlines() if n not in trained]
    prompts = [f"{name}, high contrast icon" for name in random.Random(3).sample(concepts, 32)]

    def draw() -> np.ndarray:
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        return pipeline(
            prompts, num_inference_steps=20, guidance_scale=3.0, generator=generators, output_type="np"
        ).images

    before = style(draw())
    for name in ("pytorch_lora_weights.safetensors", "q.safetensors"):
        pipeline.load_lora_weights(tmp_path / "q", weight_name=name)
        after = style(draw())
        pipeline.unload_lora_weights()
        print(f"{name}: colour {before[0]:.3f} -> {after[0]:.3f}, black {before[1]:.3f} -> {after[1]:.3f}")
        assert after[0] < 0.5 * before[0] and after[1] >= 2 * before[1]
