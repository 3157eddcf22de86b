"""Estimates of memory against runs, each in a process of its own; the ladder; what `check` says of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lora_scripts import counting, registry
from lora_scripts.config.load import load
from lora_scripts.config.schema import RunConfig
from lora_scripts.preparation import Prepared, prepare
from lora_scripts.train.precision import Precision
from tests import tiny, tiny_text

TOLERANCE = 0.15
PLAIN = Precision(torch.float32, "no")
MIB = 1 << 20
SIDE = 64

AGAIN = {"gradient_checkpointing": True}
CASES: Mapping[str, dict[str, Any]] = {
    "float32, 6": {"base_precision": "float32", "batch_size": 6},
    "bf16, 6": {"base_precision": "bf16", "batch_size": 6},
    "fp8, 6, checkpointing": {"base_precision": "fp8", "batch_size": 6} | AGAIN,
}
MORE: Mapping[str, dict[str, Any]] = {
    "embedded": {"base_model": "embedded/pictures", "base_precision": "float32", "batch_size": 6},
    "float32, 1": {"base_precision": "float32", "batch_size": 1},
    "float32, 6, checkpointing": {"base_precision": "float32", "batch_size": 6} | AGAIN,
    "bf16, 1, checkpointing": {"base_precision": "bf16", "batch_size": 1} | AGAIN,
    "bf16, 6, dora, averages": {"base_precision": "bf16", "batch_size": 6, "adapter": "dora", "ema": 0.99},
    "bf16, 3 and 3": {"base_precision": "bf16", "batch_size": 3, "gradient_accumulation": 2},
    "float32, 6, rank 64": {"base_precision": "float32", "batch_size": 6, "lora_rank": 64},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of a middle size: a UNet of 21 million random weights, and the tiny VAE and text encoder."""
    from diffusers import UNet2DConditionModel

    folder = tiny.tiny_sd_folder(tmp_path_factory.mktemp("middle") / "base")
    settings = tiny.unet_settings() | {
        "sample_size": 32,
        "block_out_channels": [64, 128, 256],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(2)
        UNet2DConditionModel.from_config(settings).save_pretrained(folder / "unet")
    return folder


def write(folder: Path, base_model: Path | str, **values: Any) -> Path:
    """Write a config of one step, with its pictures."""
    folder.mkdir(parents=True)
    config = {
        "train_data_dir": str(tiny.tiny_pictures(folder / "pictures", 6, (SIDE, SIDE))),
        "base_model": str(base_model),
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "resolution": SIDE,
        "caption": {"trigger": "disc"},
        "gradient_accumulation": 1,
        "steps": 1,
        "preview": False,
        "exporters": ["kohya"],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config | values), encoding="utf-8")
    return path


def child(*arguments: str) -> Any:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.peaks", *arguments],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what was measured of glibc's habits holds there")
@pytest.mark.parametrize("cases", [CASES, pytest.param(MORE, marks=pytest.mark.slow)], ids=["few", "more"])
def test_estimates_are_within_fifteen_percent_of_what_runs_take(
    cases: Mapping[str, dict[str, Any]], base: Path, tmp_path: Path
):
    configs = {}
    for number, (name, values) in enumerate(cases.items()):
        configs[name] = write(tmp_path / str(number), **({"base_model": base} | values))
    assert len(configs) in (3, 7)
    estimated = dict(zip(configs, child("estimate", *map(str, configs.values())), strict=True))
    measured = {name: child("train", str(path)) for name, path in configs.items()}
    off = {name: max(estimated[name].values()) / measured[name] - 1 for name in configs}
    print(f"\n{'':28}{'estimated':>10}{'measured':>10}{'off':>8}   MiB; phase")
    for name, phases in estimated.items():
        peak = max(phases, key=lambda phase: phases[phase])
        print(f"{name:28}{phases[peak] / MIB:10.0f}{measured[name] / MIB:10.0f}{off[name]:8.1%}   {peak}")
    assert {name: share for name, share in off.items() if abs(share) > TOLERANCE} == {}
    # The cases are far enough from each other that no constant would pass.
    assert max(measured.values()) > 1.5 * min(measured.values())


@pytest.fixture(scope="module")
def prepared(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    path = write(tmp_path_factory.mktemp("ladder") / "run", base, base_precision="float32", batch_size=4)
    return prepare(load(path, []))


def test_counting_takes_no_memory_to_speak_of(prepared: Prepared):
    where = counting.machine()
    large = replace(prepared, examples=[replace(example, bucket=(512, 512)) for example in prepared.examples])
    before = counting.memory.used_bytes(torch.device("cpu"))
    counted = counting.count(large, where)
    assert counted.found.step > 8 << 30
    assert counting.memory.used_bytes(torch.device("cpu")) - before < 300 * MIB


def test_the_heaviest_micro_batch_is_of_one_size(prepared: Prepared):
    """Pictures of one size are put together: few large ones are lighter than many small ones."""
    small = prepared.examples[0]
    large = replace(small, id="large", bucket=(96, 96))
    rows = counting._heaviest(replace(prepared, examples=[*prepared.examples, large]))
    assert [row.bucket for row in rows] == [small.bucket] * 4
    huge = replace(small, id="huge", bucket=(256, 256))
    assert counting._heaviest(replace(prepared, examples=[*prepared.examples, huge])) == [huge]


@pytest.mark.parametrize("kind", sorted(registry.names("adapters")))
def test_every_kind_of_adapter_is_counted(kind: str, tmp_path: Path):
    """Its trained numbers too are those of the run."""
    path = write(tmp_path / "run", "embedded/pictures", adapter=kind, lora_targets="attention")
    prepared = prepare(load(path, []))
    counted = counting.count(prepared, counting.machine())
    live = prepared.family.load(prepared.base, counting._placement(prepared.config, PLAIN, torch.device("cpu")))
    injected, trained = counting._injected(prepared, live.trainable(), PLAIN)
    assert dict(counted.trained) == trained
    assert trained["unet"][2] == injected.summary()["unet"].parameters > 1000
    assert counted.counted.pairs == 4 * trained["unet"][2]
    # Two moments, and a step count a tensor.
    states = counted.counted.states - 2 * counted.counted.pairs
    assert 0 <= states <= 8 * trained["unet"][1]


def test_the_kinds_are_all_there():
    assert len(registry.names("adapters")) >= 4


@pytest.mark.parametrize("name", sorted(registry.names("optimizers")))
def test_what_an_optimizer_keeps_is_what_it_has(name: str):
    """One tensor of each shape stands for all of that shape."""
    module = registry.load("optimizers", name)
    if any(find_spec(package) is None for package in getattr(module, "NEEDS", {})):
        pytest.skip(f"{name} needs a library that is not installed")
    shapes = [(8, 320), (1280, 8), (8, 320)]
    tensors = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    config = RunConfig(base_model="x", output_dir=Path("y"), optimizer=name)
    counted = counting.optimizer_bytes(config, {"unet": {str(n): t for n, t in enumerate(tensors)}})
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, 1e-3)
    optimizer = module.build([{"params": tensors, "lr": 1e-4, "component": "unet"}], module.Config())
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert counted == sum(value.nbytes for value in kept) > 0


def test_texts_are_estimated_by_what_was_measured_once(tmp_path: Path):
    base = tiny_text.write_base(tmp_path / "base")
    rows = tiny_text.write_rows(tmp_path / "rows.jsonl", tiny_text.task_rows(12))
    values = tiny_text.config(tmp_path, base_model=str(base), train_data_dir=str(rows))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    prepared = prepare(load(path, []))
    where = counting.machine()
    plain = counting.count(prepared, where)
    again = counting.count(prepared, where, prepared.config.model_copy(update={"gradient_checkpointing": True}))
    assert plain.found.step > again.found.step > 0
    assert plain.counted.base == pytest.approx(4 * sum(prepared.base.parameters.values()), rel=0.5)
    assert plain.trained["language_model"][2] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_on_a_card_with_a_network_of_full_size(precision: str, again: bool, tmp_path: Path):
    """The most that torch allocates while a UNet of Stable Diffusion 1.5's shape takes a step, within 15 %."""
    folder = tiny.tiny_sd_folder(tmp_path / "base")
    full = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": tiny.TEXT_WIDTH, "layers_per_block": 2}
    kinds = {
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_config(tiny.unet_settings() | full | kinds).to(torch.bfloat16).save_pretrained(
        folder / "unet"
    )
    path = write(tmp_path / "run", folder, base_precision=precision, batch_size=2, gradient_checkpointing=again)
    prepared = prepare(load(path, []))
    counted = counting.count(prepared, counting.machine())
    from lora_scripts import assembly
    from lora_scripts.data.cache import Cache

    run = assembly.build(prepared, assembly.machine(prepared.config), Cache(tmp_path / "cache"), "")
    assembly.fill(run, lambda code, **params: None)
    torch.cuda.reset_peak_memory_stats()
    run.trainer.fit(run.loader.largest())
    measured = torch.cuda.max_memory_allocated()
    assert counted.memory.phases["step"] - counting.CONTEXT_BYTES == pytest.approx(measured, rel=TOLERANCE)
