"""Twenty broken configs and folders: one sentence, the right exit code, no traceback, nothing lost, in time."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Break = Callable[[Path], list[str]]


def key(text: str) -> Break:
    """Break the config by a further line."""

    def harm(folder: Path) -> list[str]:
        path = folder / "run.yaml"
        path.write_text(path.read_text() + text + "\n")
        return []

    return harm


def override(*words: str) -> Break:
    return lambda folder: [part for word in words for part in ("--set", word.format(folder=folder))]


def files(change: Callable[[Path], object], *words: str) -> Break:
    def harm(folder: Path) -> list[str]:
        change(folder)
        return override(*words)(folder)

    return harm


def _empty(folder: Path) -> None:
    shutil.rmtree(folder / "pictures")
    (folder / "pictures").mkdir()


def _texts_only(folder: Path) -> None:
    _empty(folder)
    (folder / "pictures" / "notes.txt").write_text("x")


def _absent_rows(folder: Path) -> None:
    with (folder / "pictures" / "metadata.csv").open("a") as file:
        file.write("nobody.png,a ghost\n")


def _bad_pictures(folder: Path) -> None:
    for path in list((folder / "pictures").glob("*.png"))[:3]:
        path.write_bytes(path.read_bytes()[:40])


def _caption_bytes(folder: Path) -> None:
    (folder / "pictures" / "metadata.csv").unlink()
    for path in (folder / "pictures").glob("*.png"):
        path.with_suffix(".txt").write_bytes(b"it\x92s a cat")


def _pickle(folder: Path) -> None:
    (folder / "base.ckpt").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch canary'\ntR.")


def _truncated(folder: Path) -> None:
    (folder / "base.safetensors").write_bytes(b"\x10\x27\0\0\0\0\0\0{")


def _other_family(folder: Path) -> None:
    names = ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"]
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}
    raw = json.dumps(header).encode()
    (folder / "base.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 8)


def _file_for_output(folder: Path) -> None:
    (folder / "taken").write_text("x")


def _foreign_output(folder: Path) -> None:
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.docx").write_text("x")


TABLE: list[tuple[str, Break, int, str, str]] = [
    ("unknown key", key("lora_rnk: 4"), 2, "lora_rnk", "lora_rank"),
    ("wrong type", key("seed: many"), 2, "many", "int"),
    ("out of range", override("epochs=0"), 2, "epochs", ">= 1"),
    ("bad choice", override("loss=l7"), 2, "l7", "huber"),
    ("bad preset", override("lora_targets=everything"), 2, "everything", "kohya"),
    ("pattern matches nothing", override("lora_targets=[.*attn1.to_w]"), 2, "to_w", "attn1.to_"),
    ("not a pattern", override("lora_targets=['(']"), 2, "(", "regular expression"),
    ("family of another kind", override("family=sdx"), 2, "sdx", "sd"),
    ("missing base", override("base_model={folder}/nobody.safetensors"), 2, "nobody.safetensors", ""),
    ("pickle base", files(_pickle, "base_model={folder}/base.ckpt"), 2, "base.ckpt", "safetensors"),
    ("truncated base", files(_truncated, "base_model={folder}/base.safetensors"), 2, "base.safetensors", ""),
    ("another architecture", files(_other_family, "base_model={folder}/base.safetensors"), 2, "base.safetensors", ""),
    ("missing folder", override("train_data_dir={folder}/nowhere"), 3, "nowhere", ""),
    ("empty folder", files(_empty), 3, "pictures", ""),
    ("folder without pictures", files(_texts_only), 3, "pictures", ""),
    ("rows of absent pictures", files(_absent_rows), 3, "nobody.png", "missing_pictures: ignore"),
    ("too many bad pictures", files(_bad_pictures), 3, ".png", "max_bad_fraction"),
    ("captions of another encoding", files(_caption_bytes), 3, "0x92", "UTF-8"),
    ("output is a file", files(_file_for_output, "output_dir={folder}/taken"), 2, "taken", "folder"),
    ("output of somebody else", files(_foreign_output, "output_dir={folder}/taken"), 2, "thesis.docx", "folder"),
    ("no such adapter", override("init_lora={folder}/nobody.safetensors"), 2, "nobody.safetensors", ""),
    ("absent metadata", override("metadata_path={folder}/nobody.csv"), 3, "nobody.csv", ""),
]


@pytest.mark.parametrize(("harm", "code", "what", "remedy"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_broken(config_file, tmp_path, command, harm, code, what, remedy):
    words = harm(tmp_path)
    started = time.perf_counter()
    done = command("train", "--config", config_file, *words)
    seconds = time.perf_counter() - started
    assert done.returncode == code, done.stderr
    assert what in done.stderr and remedy in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    assert seconds < 10, "refused only after something heavy was loaded"
    assert not (tmp_path / "canary").exists() and not (tmp_path / "out" / "checkpoints").exists()
    if (tmp_path / "taken").is_dir():
        assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.docx"]


def test_the_table_is_whole():
    assert len(TABLE) == 22


def test_refusals_load_no_torch(config_file, tmp_path, command):
    """What makes them fast: nothing heavy is imported before the data and the base are known to be good."""
    import os
    import subprocess
    import sys

    code = (
        "import sys; from lora_scripts.cli import main\n"
        "rc = main(sys.argv[1:]); print(rc, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    for words in (["epochs=0"], ["base_model=/nobody.safetensors"], ["train_data_dir=/nowhere"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "train", "--config", str(config_file), "--set", *words],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")},
        )
        assert done.stdout.strip().splitlines()[-1] in ("2 False False", "3 False False"), done.stdout + done.stderr
