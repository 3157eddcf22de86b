"""The benchmark of picture training: what it prints follows from what was measured, and the sides train the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from bench.pictures import __main__ as command
from bench.pictures import bases, child, sides
from lora_scripts import embedded
from lora_scripts.config.load import from_mapping
from lora_scripts.preparation import prepare

FACTS = {"operations": 1e9, "rates": {"float32": 1e9, "bfloat16": 4e9}}


@pytest.fixture(scope="module")
def job() -> sides.Job:
    base = embedded.resolve("embedded/pictures")
    assert base is not None
    return sides.Job("embedded", base, bases.EXAMPLE, 2)


def test_figures_follow_from_what_was_measured(tmp_path):
    def run(side: str, seconds: list[float], held: str) -> dict:
        folder = tmp_path / side
        folder.mkdir()
        (folder / "bench.json").write_text(json.dumps({"seconds": seconds, "losses": []}))
        (folder / "run.json").write_text(json.dumps({"resolved": {"base_precision": held}}))
        return {"side": side, **command.figures(side, folder, 60.0, 2_000_000_000, FACTS)}

    ours = run("ours", [9.0, 0.5, 0.5], "bfloat16")
    assert ours["steps_a_second"] == 2 and ours["job_seconds"] == 60 and ours["peak_gb"] == 2
    assert ours["of_the_rate"] == pytest.approx(1e9 / 0.5 / 4e9)
    recipe = run("recipe-float32", [9.0, 2.0, 2.0], "-")
    assert recipe["of_the_rate"] == pytest.approx(0.5)
    middle = command.medians([ours, recipe, {**ours, "job_seconds": 80.0}])
    assert middle["ours"]["job_seconds"] == 70
    assert command.ratios(middle) == {
        "ours/recipe-float32": pytest.approx(
            {"steps_a_second": 4, "step_seconds": 0.25, "job_seconds": 70 / 60, "peak_gb": 1, "of_the_rate": 1}
        )
    }
    result = {"facts": FACTS, "steps": 3, "runs": [ours, recipe], "medians": middle, "ratios": command.ratios(middle)}
    printed = list(command.lines(bases.CASES["shape"], result))
    assert len(printed) == 3 + 2 + 2 + 1 and printed[-1].startswith("ours/recipe-float32") and "4.000" in printed[-1]


@pytest.mark.parametrize("side", ["recipe-float32", "recipe-bf16"])
def test_a_recipe_trains_the_pairs_that_ours_trains(side: str, job: sides.Job, tmp_path: Path):
    AcceleratorState._reset_state(reset_partial_state=True)
    trained = sides.SIDES[side](job, tmp_path)
    assert len(trained.seconds) == len(trained.losses) == 2 and all(0 < loss < 5 for loss in trained.losses)
    AcceleratorState._reset_state(reset_partial_state=True)
    (file,) = tmp_path.glob("*.safetensors")
    saved = load_file(file)
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    prepared = prepare(from_mapping(sides.our_config(job, tmp_path / "ours")))
    from lora_scripts.adapters.inject import choose

    chosen = choose(prepared.family.skeleton(prepared.base), {"unet": prepared.targets["unet"]})["unet"]
    ending = ".lora.down.weight"
    names = {name.removeprefix("unet.").removesuffix(ending) for name in saved if name.endswith(ending)}
    assert names == {*chosen} and len(saved) == 2 * len(chosen) > 0
    assert prepared.plan.steps == 2 and prepared.plan.step_size == 16
    ups = [tensor for name, tensor in saved.items() if name.endswith(".lora.up.weight")]
    assert any(tensor.abs().max() > 0 for tensor in ups)


def test_operations_are_those_of_the_network_with_its_pairs(job: sides.Job):
    one = bases.operations(job.base, 64, 1)
    assert bases.operations(job.base, 64, 2) == 2 * one
    assert 1e9 < one < 3e9


def test_a_job_reads_back(job: sides.Job, tmp_path: Path):
    path = tmp_path / "job.json"
    values = {key: str(value) for key, value in dataclasses.asdict(job).items()} | {"steps": 2}
    path.write_text(json.dumps(values))
    assert sides.Job.read(path) == job
    assert child._rate(torch.float32) > 1e9
