"""F41, F42: stopped after any step and carried on by the same command, the adapter has the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_scripts.preparation import prepare
from tests.faults import resuming

STEPS = 40
KINDS = ("pictures", "text")
ACCUMULATIONS = (1, 3)
QUICK = ("adamw", "schedule_free", "prodigy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and cache of all runs of this file."""
    return tmp_path_factory.mktemp("runs")


def settings_of(kind: str, folder: Path, base_folder: Path, text_base: Path, **values: Any) -> dict[str, Any]:
    (folder / kind).mkdir(exist_ok=True)
    if kind == "pictures":
        return resuming.pictures(folder / kind, base_folder, **values)
    return resuming.text(folder / kind, text_base, **values)


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", QUICK)
def test_f41_stopped_after_five_steps_gives_equal_bytes(
    optimizer: str, kind: str, accumulation: int, folder: Path, base_folder: Path, text_base: Path, tmp_path: Path
):
    """One run through, and one stopped after steps 1, 3, 4, 7 and 9: inside of epochs, at their ends, twice running."""
    more = {**resuming.OPTIMIZERS[optimizer], "gradient_accumulation": accumulation}
    settings = settings_of(kind, folder, base_folder, text_base, **more)
    through = resuming.config(settings, output_dir=str(tmp_path / "through" / "out"))
    stopped = resuming.config(settings, output_dir=str(tmp_path / "stopped" / "out"))
    losses: list[list[float]] = [[], []]
    resuming.run(through, prepared=prepare(through), losses=losses[0])
    resuming.run(stopped, 1, 3, 4, 7, 9, prepared=prepare(stopped), losses=losses[1])
    assert resuming.digest(stopped.output_dir) == resuming.digest(through.output_dir)
    assert losses[0] == losses[1] and len(set(losses[0])) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_f42_resumed_twice_within_one_epoch(
    kind: str, folder: Path, base_folder: Path, text_base: Path, tmp_path: Path
):
    """Five and eight steps an epoch: stops after its first, second and third visit."""
    settings = settings_of(kind, folder, base_folder, text_base, **resuming.OPTIMIZERS["adamw"])
    through = resuming.config(settings, output_dir=str(tmp_path / "through" / "out"))
    twice = resuming.config(settings, output_dir=str(tmp_path / "twice" / "out"))
    resuming.run(through)
    outcome = resuming.run(twice, 1, 2, 3)
    assert outcome.prepared.plan.steps_per_epoch > 3
    assert resuming.digest(twice.output_dir) == resuming.digest(through.output_dir)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", resuming.OPTIMIZERS)
def test_f41_resumed_from_each_of_forty_steps_gives_equal_bytes(
    optimizer: str, kind: str, accumulation: int, folder: Path, base_folder: Path, text_base: Path, tmp_path: Path
):
    """A run that saves every step; each time the end and all later saves are gone, as if it was killed there."""
    more = {**resuming.OPTIMIZERS[optimizer], "gradient_accumulation": accumulation, "steps": STEPS}
    settings = settings_of(kind, folder, base_folder, text_base, **more, output_dir=str(tmp_path / "out"))
    out, saves = tmp_path / "out", tmp_path / "out" / "checkpoints"
    whole: list[float] = []
    resuming.run(resuming.config(settings, save_steps=1), losses=whole)
    wanted = resuming.digest(out)
    rest = prepare(resuming.config(settings, save_steps=STEPS))
    for step in range(STEPS - 1, 0, -1):
        for later in range(step + 1, STEPS + 1):
            shutil.rmtree(saves / f"step-{later}", ignore_errors=True)
        for result in out.glob("*.safetensors"):
            result.unlink()
        losses: list[float] = []
        resuming.run(rest.config, prepared=rest, losses=losses)
        assert losses == whole[step:], step
        assert resuming.digest(out) == wanted, step
