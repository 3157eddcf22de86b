"""Several processes of which one dies, hangs, fails or was started otherwise; by torchrun, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts.train import checkpoint, ranks
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

# Loaded by every interpreter that is started: changes what one rank does, and notes what each has trained.
CHANGE = """\
import os
RANK, FAULT, FOLDER = os.environ.get("RANK"), os.environ.get("FAULT", ""), os.environ["WATCHED"]

def change():
    import hashlib, signal, time
    import torch
    from lora_scripts.contracts import Loss
    from lora_scripts.objectives.denoise import Denoise
    from lora_scripts.train.loop import Trainer
    from lora_scripts.train.listeners.preview import Preview

    true_step, true_loss, true_show = Trainer.step, Denoise.loss, Preview._show

    def step(self, batches):
        number = self.done + 1
        if RANK == "1" and number == 4:
            if FAULT == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if FAULT == "hang":
                time.sleep(600)
        if FAULT == "slow":
            time.sleep(0.2)
        done = true_step(self, batches)
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.tensors)).hexdigest()
        with open(os.path.join(FOLDER, f"trained-{RANK}.txt"), "a") as file:
            file.write(f"{self.done} {digest}\\n")
        return done

    def loss(self, family, batch, **more):
        made = true_loss(self, family, batch, **more)
        if FAULT == "nan" and RANK == "1":
            with open(os.path.join(FOLDER, "ids.txt"), "w") as file:
                file.write(batch.ids[0])
            return Loss(made.total * float("nan"))
        if FAULT == "full" and RANK == "1" and len(batch.ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    def show(self, number):
        time.sleep(2)
        return true_show(self, number)

    Trainer.step, Denoise.loss = step, loss
    if FAULT == "preview":
        Preview._show = show

if RANK is not None:
    import sys
    class Late:
        def find_spec(self, name, path=None, target=None):
            if name == "lora_scripts.finishing":
                sys.meta_path.remove(self)
                change()
            return None
    sys.meta_path.insert(0, Late())
"""


@pytest.fixture
def folder(tmp_path: Path, base_folder: Path) -> Path:
    tiny.tiny_pictures(tmp_path / "pictures", 8)
    (tmp_path / "sitecustomize.py").write_text(CHANGE)
    write(tmp_path, base_folder)
    return tmp_path


def write(folder: Path, base: Path, name: str = "run", **more: Any) -> Path:
    values = {
        "train_data_dir": str(folder / "pictures"),
        "base_model": str(base),
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "name": "x",
        "lora_rank": 2,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "steps": 6,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "base_precision": "float64",
        "preview": False,
        "process_timeout": 20,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values | more))
    return path


def start(folder: Path, fault: str = "", *words: str, config: str = "run.yaml") -> subprocess.Popen:
    path = os.pathsep.join([str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": path, "ACCELERATE_USE_CPU": "true", "FAULT": fault, "WATCHED": str(folder)}
    command = [*TORCHRUN, str(ROOT / "train.py"), "--config", config, *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ | more, **pipes)


def end(process: subprocess.Popen, seconds: float = 120) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            process.kill()


def trained(folder: Path) -> list[list[str]]:
    """The digests of both ranks, by step."""
    return [(folder / f"trained-{rank}.txt").read_text().splitlines() for rank in (0, 1)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(((a - two[name]).abs().max() / a.abs().max().clamp(min=1e-9)).item() for name, a in one.items())


def test_f90_a_killed_process_ends_the_run_in_words_and_the_checkpoint_is_whole(folder):
    began = time.monotonic()
    process = start(folder, "die")
    said = end(process)
    assert process.returncode != 0 and time.monotonic() - began < 60
    # The launcher ends the other process; whichever comes first, the closed connection or its signal, is told.
    assert "does not answer any more" in said or "SIGTERM: finishing this step" in said, said
    assert "This is a fault of lora-scripts" not in said
    assert checkpoint.steps(folder / "out/checkpoints") == [2]
    assert checkpoint.load_newest(folder / "out/checkpoints", lambda code, params: None).step == 2
    again = start(folder)
    assert "Resuming at step 2 of 6" in end(again) and again.returncode == 0
    first, second = trained(folder)
    assert first[-4:] == second[-4:] and len({line.split()[1] for line in first[-4:]}) == 4


@pytest.mark.slow
def test_f91_a_process_that_hangs_is_named_with_its_step(folder, base_folder):
    write(folder, base_folder, process_timeout=5)
    began = time.monotonic()
    process = start(folder, "hang")
    said = end(process)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert "does not answer any more (rank 1, last heard of at step 3" in said, said
    assert json.loads((folder / "out/run.json").read_text())["state"] == "failed"


def test_f92_nan_in_one_process_stops_all_at_the_same_step_and_names_its_example(folder):
    process = start(folder, "nan")
    said = end(process)
    assert process.returncode != 0
    assert said.count("not finite at step 1") >= 2
    assert (folder / "ids.txt").read_text() in said.split("examples ")[1].split(")")[0]
    assert not checkpoint.steps(folder / "out/checkpoints")


@pytest.mark.slow
def test_f93_processes_with_different_configs_are_refused_by_key(folder, base_folder):
    write(folder, base_folder, "other", learning_rate=1e-3)
    (folder / "pick.py").write_text(
        "import os, runpy, sys\n"
        "sys.argv = ['train.py', '--config', 'run.yaml' if os.environ['RANK'] == '0' else 'other.yaml']\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    more = {"PYTHONPATH": str(ROOT / "src"), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*TORCHRUN, "pick.py"], cwd=folder, env=os.environ | more, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and "learning_rate is 0.01 in process 0 and 0.001 in process 1" in done.stderr


@pytest.mark.slow
def test_f94_a_polite_kill_of_the_launcher_leaves_one_checkpoint_more(folder):
    process = start(folder, "slow")
    events = folder / "out/events.jsonl"
    limit = time.monotonic() + 60
    while not (events.exists() and events.read_text().count('"Stepped"') >= 3):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    end(process)
    steps = checkpoint.steps(folder / "out/checkpoints")
    assert (steps[:1] == [2] and len(steps) == 2) or steps == [2, 4]
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    assert sum(row["event"] == "Saved" for row in rows) == len(steps)
    again = start(folder)
    assert f"Resuming at step {steps[-1]} of 6" in end(again) and again.returncode == 0


@pytest.mark.slow
def test_f61_a_full_memory_in_one_process_makes_all_smaller(folder, base_folder):
    process = start(folder, "full")
    said = end(process)
    assert process.returncode == 0, said
    assert "micro-batches hold 1 examples now instead of 2" in said
    first, second = trained(folder)
    assert first == second and len(first) == 6
    write(folder, base_folder, "small", batch_size=1, gradient_accumulation=4, output_dir=str(folder / "small"))
    small = start(folder, config="small.yaml")
    assert small.wait() == 0
    assert furthest(weights(folder / "out"), weights(folder / "small")) < 1e-12


@pytest.mark.slow
def test_f96_a_slow_preview_in_one_process_changes_nothing(folder, base_folder):
    write(folder, base_folder, preview={"prompts": ["a thing"], "steps": 1})
    process = start(folder, "preview")
    assert process.wait() == 0
    first, second = trained(folder)
    assert first == second and len(first) == 6 and (folder / "out/previews/before_after.png").exists()


@pytest.mark.slow
def test_f49_saved_by_two_and_resumed_by_one(folder, base_folder):
    """The step stays the same set of visits; the config says how many each process collects, so it is a change."""
    end(start(folder, "die"))
    assert checkpoint.steps(folder / "out/checkpoints") == [2]

    def alone(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "train.py"), "--config", "run.yaml", *words]
        more = {"PYTHONPATH": str(ROOT / "src")}
        return subprocess.run(command, cwd=folder, env=os.environ | more, capture_output=True, text=True)

    wider = ("--set", "gradient_accumulation=4")
    refused = alone(*wider)
    assert refused.returncode == 2 and "gradient_accumulation was 2" in refused.stderr
    resumed = alone(*wider, "--continue")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Resuming at step 2 of 6" in resumed.stdout
    whole = start(folder, "", "--set", f"output_dir={folder / 'whole'}")
    said = end(whole)
    assert whole.returncode == 0, said
    assert furthest(weights(folder / "out"), weights(folder / "whole")) < 1e-12


@pytest.mark.slow
def test_f98_a_main_process_that_dies_while_the_others_wait_for_the_cache(folder):
    (folder / "sitecustomize.py").write_text(
        CHANGE.replace(
            "if RANK is not None:", "if RANK == '0' and FAULT == 'cache':\n    pass\nif RANK is not None:"
        ).replace(
            "    Trainer.step, Denoise.loss = step, loss",
            "    Trainer.step, Denoise.loss = step, loss\n"
            "    from lora_scripts.train.loader import Loader\n"
            "    true_fill = Loader.fill\n"
            "    def fill(self, *words, **more):\n"
            "        done = true_fill(self, *words, **more)\n"
            "        if FAULT == 'cache' and RANK == '0':\n"
            "            os.kill(os.getpid(), signal.SIGKILL)\n"
            "        return done\n"
            "    Loader.fill = fill",
        )
    )
    process = start(folder, "cache")
    said = end(process)
    assert process.returncode != 0 and "This is a fault" not in said
    kept = len(list((folder / "cache").rglob("*.safetensors")))
    assert kept > 0
    again = start(folder)
    assert "0 made" in end(again) and again.returncode == 0


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:5: Connection reset by peer", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv operation", True),
        ("The size of tensor a (4) must match the size of tensor b (3)", False),
    ],
)
def test_what_counts_as_a_lost_process(said, lost):
    assert ranks.is_lost(RuntimeError(said)) is lost
