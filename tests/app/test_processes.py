"""Two processes give the weights of one: the same command under torchrun, in float64, on a tiny base."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import app
from lora_scripts.config.load import load
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# Its --cpu starts one process only; --multi_gpu is its name for torchrun, whatever the processes then find.
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
ACCELERATE += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
CLOSE = 1e-12

# Python's own hooks tell which process wrote what; loaded by every interpreter that is started.
WATCH = """\
import os, sys
rank, folder = os.environ.get("RANK"), os.environ["WATCHED"]
if rank is not None:
    log = os.open(os.path.join(folder, f"rank-{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    paths = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}

    def hook(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in paths:
            path = arguments[paths.get(event, 0)]
            if isinstance(path, (str, os.PathLike)) and str(path).startswith(folder):
                os.write(log, f"{event} {os.fspath(path)}\\n".encode())

    sys.addaudithook(hook)
"""

CONFIG = """\
datasets:
- {{path: "{folder}/square"}}
- {{path: "{folder}/wide", weight: 0.7}}
base_model: "{base}"
output_dir: "{folder}/{out}"
cache_dir: "{folder}/cache-{out}"
name: together
resolution: 48
lora_rank: 2
lora_dropout: 0.1
batch_size: 2
epochs: 2
learning_rate: 1e-2
save_steps: 2
base_precision: float64
train_text_encoder: true
flip: true
caption: {{dropout: 0.2}}
preview: false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base_folder) -> Path:
    """Nine pictures of two sizes: steps of four have micro-batches of two, one and none."""
    folder = tmp_path_factory.mktemp("processes")
    tiny.tiny_pictures(folder / "square", 6)
    tiny.tiny_pictures(folder / "wide", 3, (64, 32))
    for part in ("square", "wide"):
        rows = [f"{path.name},a thing number {i}" for i, path in enumerate(sorted((folder / part).glob("*.png")))]
        (folder / part / "metadata.csv").write_text("file_name,prompt\n" + "\n".join(rows) + "\n")
    for out in ("one", "two"):
        (folder / f"{out}.yaml").write_text(CONFIG.format(folder=folder, base=base_folder, out=out))
    (folder / "sitecustomize.py").write_text(WATCH)
    return folder


def launch(folder: Path, launcher, *words: str) -> subprocess.CompletedProcess:
    more = {"PYTHONPATH": f"{folder}:{ROOT / 'src'}", "WATCHED": str(folder), "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*launcher, str(ROOT / "train.py"), *words],
        cwd=folder,
        env=os.environ | more | {"PYTHONPATH": os.pathsep.join([more["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=300,
    )


def state_of(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step}" / "state.safetensors")


def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest distance of two tensors, relative to the first one's size."""
    assert one.keys() == two.keys() and len(one) > 200
    assert {tensor.dtype for name, tensor in one.items() if name.startswith("weight/")} == {torch.float64}
    tiniest = torch.finfo(torch.float64).tiny
    return max(((one[n] - two[n]).double().norm() / one[n].double().norm().clamp_min(tiniest)).item() for n in one)


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    app.train(load(folder / "one.yaml"))
    return folder / "one"


def writes(folder: Path, rank: int, part: str) -> list[tuple[str, str]]:
    rows = [line.split(" ", 1) for line in (folder / f"rank-{rank}.txt").read_text().splitlines()]
    return [(event, Path(path).name) for event, path in rows if path.startswith(str(folder / part))]


def test_two_processes_are_one(folder, alone):
    done = launch(folder, TORCHRUN, "--config", "two.yaml")
    assert done.returncode == 0, done.stderr
    assert "Batch: 4 a step = 2 at once x 1 collected x 2 processes" in done.stdout
    two = folder / "two"
    assert furthest(state_of(alone, 6), state_of(two, 6)) < CLOSE
    first = state_of(alone, 2)
    assert furthest(first, state_of(two, 2)) < CLOSE < furthest(first, state_of(alone, 6))

    # One of them writes the run's folder; both fill the cache, each its own pieces.
    assert len(writes(folder, 0, "two")) > 20 and writes(folder, 1, "two") == []
    made = [{name for event, name in writes(folder, rank, "cache-two") if event == "os.rename"} for rank in (0, 1)]
    assert all(len(names) >= 5 for names in made) and not made[0] & made[1]
    assert {path.name for path in (folder / "cache-two").rglob("*.safetensors")} == made[0] | made[1]
    events = [json.loads(line) for line in (two / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "Stepped"] == [1, 2, 3, 4, 5, 6]

    # What two saved, one carries on.
    for name in ("step-4", "step-6"):
        shutil.rmtree(two / "checkpoints" / name)
    for path in two.glob("*.safetensors"):
        path.unlink()
    outcome = app.train(load(folder / "two.yaml"))
    assert outcome.steps == 6 and not outcome.already
    assert furthest(state_of(alone, 6), state_of(two, 6)) < CLOSE


def test_a_refused_config_ends_both_with_its_code(folder):
    done = launch(folder, TORCHRUN, "--config", "two.yaml", "--set", "lora_rank=0")
    assert done.returncode == 1 and "lora_rank is 0" in done.stderr
    assert "exitcode  : 2" in done.stderr.replace("exitcode : 2", "exitcode  : 2")


@pytest.mark.slow
def test_accelerate_launch_is_the_same(folder, alone):
    shutil.rmtree(folder / "two", ignore_errors=True)
    done = launch(folder, ACCELERATE, "--config", "two.yaml")
    assert done.returncode == 0, done.stderr
    assert furthest(state_of(alone, 6), state_of(folder / "two", 6)) < CLOSE
