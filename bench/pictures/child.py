"""What runs in a process of its own.

python -m bench.pictures.child prepare JOB         writes the case's base and pictures, and JOB's facts.json
python -m bench.pictures.child SIDE JOB OUT        trains; writes OUT/bench.json
python -m bench.pictures.child loss JOB [OUT ...]  writes losses.json: of the base and of each LoRA
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.pictures import bases, sides

MATRIX = 2048
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def prepare(path: Path) -> None:
    """Write what the sides read, and what is known of a step and of the machine."""
    from importlib.metadata import version

    import torch

    job = sides.Job.read(path)
    case = bases.CASES[job.case]
    if job.case == "shape":
        bases.write_shape(job.base)
        bases.write_pictures(job.pictures, 8, case.pixels)
    facts = {
        "operations": bases.operations(job.base, case.pixels, case.batch),
        "rates": {name: _rate(getattr(torch, name)) for name in ("float32", "bfloat16")},
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
    }
    (path.parent / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _rate(dtype: Any) -> float:
    """Operations a second of a matrix product, the best of five."""
    import torch

    a = torch.randn(MATRIX, MATRIX).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX**3 / best


def loss(job: sides.Job, lora: Path | None) -> float:
    """Mean squared error in float32 over all pictures at fixed levels, each with its own fixed noise."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(job.base, torch_dtype=torch.float32, safety_checker=None)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    scheduler, total = pipeline.scheduler, 0.0
    rows = sides.read_rows(job.pictures, pipeline.tokenizer, bases.CASES[job.case].pixels)
    pixels, ids = (torch.stack([row[i] for row in rows]) for i in (0, 1))
    with torch.no_grad():
        states = pipeline.text_encoder(ids)[0]
        clean = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        for level in LEVELS:
            times = torch.full((len(rows),), int(level * scheduler.config.num_train_timesteps))
            is_v = scheduler.config.prediction_type == "v_prediction"
            wanted = scheduler.get_velocity(clean, noise, times) if is_v else noise
            said = pipeline.unet(scheduler.add_noise(clean, noise, times), times, states).sample
            total += float(torch.nn.functional.mse_loss(said, wanted))
    return total / len(LEVELS)


def main(arguments: Sequence[str]) -> None:
    """Do what the first argument names."""
    name, path = arguments[0], Path(arguments[1])
    if name == "prepare":
        prepare(path)
        return
    job = sides.Job.read(path)
    if name == "loss":
        found = {"base": loss(job, None), **{out: loss(job, Path(out)) for out in arguments[2:]}}
        (path.parent / "losses.json").write_text(json.dumps(found), encoding="utf-8")
        return
    out = Path(arguments[2])
    trained = sides.SIDES[name](job, out)
    (out / "bench.json").write_text(json.dumps(dataclasses.asdict(trained)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
