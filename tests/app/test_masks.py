"""Masks and regularisation on the embedded base: what a run learns from them, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from lora_scripts import app, assembly
from lora_scripts.config.load import load
from lora_scripts.data.cache import Cache
from lora_scripts.errors import DataError
from lora_scripts.preparation import prepare

ROOT = Path(__file__).resolve().parents[2]
FILE = "out.safetensors"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """Four discs with masks, three grey squares for regularisation; two steps of four."""
    for i in range(4):
        place = (4 + 6 * i, 8, 34 + 6 * i, 38)
        for folder, mode, back, front in (("own", "RGB", "white", "red"), ("masks", "L", 0, 255)):
            (tmp_path / folder).mkdir(exist_ok=True)
            made = Image.new(mode, (64, 64), back)
            ImageDraw.Draw(made).ellipse(place, fill=front)
            made.save(tmp_path / folder / f"{i}.png")
    (tmp_path / "kept").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i,) * 3).save(tmp_path / "kept" / f"{i}.png")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""\
datasets:
  - {{path: "{tmp_path}/own", class_words: a red disc}}
  - {{path: "{tmp_path}/kept", class_words: a square, regularisation: true, visits: 4, weight: 0.5}}
mask: "{tmp_path}/masks"
base_model: embedded/pictures
output_dir: "{tmp_path}/out"
cache_dir: "{tmp_path}/cache"
lora_rank: 2
batch_size: 4
steps: 2
learning_rate: 1e-3
base_precision: float32
exporters: [kohya]
preview: false
prior: base
"""
    )
    return path


def trained(path: Path, *overrides: str) -> bytes:
    app.train(load(path, overrides), restart=True)
    return (path.parent / "out" / FILE).read_bytes()


def test_masks_change_what_is_learned_and_white_ones_do_not(run_file: Path, tmp_path: Path):
    masked, whole = trained(run_file), trained(run_file, "mask=off")
    for path in (tmp_path / "masks").iterdir():
        Image.new("L", (64, 64), 255).save(path)
    assert trained(run_file) == whole != masked
    # A finished run is asked for again, with another mask.
    Image.new("L", (64, 64), 254).save(tmp_path / "masks" / "2.png")
    with pytest.raises(DataError) as caught:
        app.train(load(run_file))
    assert caught.value.code == "train.data_changed" and "0/2.png@64x64" in str(caught.value)


def test_a_step_knows_masks_and_what_is_kept(run_file: Path, tmp_path: Path):
    """Before anything is learned the base's own answers are met exactly, and rows without a mask are whole."""
    prepared = prepare(load(run_file))
    run = assembly.build(prepared, assembly.machine(prepared.config), Cache(tmp_path / "cache"), "")
    batches = [batch for step in range(2) for batch in run.loader(step)]
    assert sum(map(sum, (batch.regularisation for batch in batches))) == 4
    for batch in batches:
        kept = torch.tensor(batch.regularisation)
        assert torch.equal(batch.weights, torch.where(kept, 0.5, 1.0))
        masks = batch.tensors.get("mask", torch.ones(len(kept), 1, 8, 8))
        assert masks.shape[1:2] == (1,) and masks.shape[2:] == batch.tensors["mean"].shape[2:]
        assert bool((masks[kept] == 1).all()) and bool((masks[~kept].mean(dim=(1, 2, 3)) < 0.3).all())
        for rows, learns in ((kept, False), (~kept, True)):
            weighed = replace(batch, weights=rows.float())
            assert bool(run.objective.loss(run.family, _again(run, weighed)).total > 0) is (learns and bool(rows.any()))


def _again(run: assembly.Run, batch):
    """The batch with generators that have not been used."""
    seeds = range(len(batch.ids))
    return replace(batch, generators=[torch.Generator().manual_seed(seed) for seed in seeds])


def _small_mask(folder: Path) -> None:
    Image.new("L", (64, 32), 255).save(folder / "masks" / "1.png")


def _black_mask(folder: Path) -> None:
    Image.new("L", (64, 64), 0).save(folder / "masks" / "3.png")


def _bad_weight(folder: Path) -> None:
    (folder / "own/metadata.csv").write_text("file_name,prompt,weight\n0.png,a disc,-2\n")


def _no_kept(folder: Path) -> None:
    path = folder / "run.yaml"
    path.write_text(path.read_text().replace("regularisation: true, ", ""))


REFUSALS = [
    (_small_mask, 3, "1.png 64x32 / 64x64"),
    (_black_mask, 3, "3.png"),
    (_bad_weight, 3, "line 2: the weight of a caption is -2"),
    (_no_kept, 2, "prior is base"),
]


@pytest.mark.parametrize(("harm", "code", "what"), REFUSALS)
def test_refused_in_one_sentence_before_anything_is_loaded(run_file: Path, tmp_path: Path, harm, code: int, what: str):
    harm(tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config", str(run_file)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code and what in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
