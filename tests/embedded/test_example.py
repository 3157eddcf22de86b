"""The example's pictures are what its README says, and its script makes such a folder again."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_scripts import embedded
from lora_scripts.embedded.training.data import HIGH_CONTRAST, NOTO
from lora_scripts.embedded.training.example import STYLE_WORDS, available, draw_names, file_name, write_example

BLACK, WHITE = 64, 192


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def name_of(row: dict[str, str]) -> str:
    return row["prompt"].removesuffix(f", {STYLE_WORDS}")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "examples/style_high_contrast"


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, str]]:
    return read_rows(folder)


def write_tarball(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@pytest.fixture
def tarballs(tmp_path: Path) -> Path:
    """Three concepts, of which two have a high-contrast icon, and one newer emoji that is no concept."""
    emojis = [
        ("RED APPLE", "1F34E", "0.6"),
        ("BANANA", "1F34C", "0.6"),
        ("PEACH", "1F351", "0.6"),
        ("MANGO", "1F96D", "11.0"),
    ]
    common = {"short_name": "x", "category": "Food & Drink", "subcategory": "food-fruit", "has_img_google": True}
    table = [common | {"name": name, "unified": code, "added_in": version} for name, code, version in emojis]
    box = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect x='8' y='8' width='16' height='16'/></svg>"
    icons = {f"package/icons/high-contrast/{name}.svg": box.encode() for name in ("red-apple", "banana", "mango")}
    folder = tmp_path / "tarballs"
    folder.mkdir()
    write_tarball(folder / NOTO, {"package/emoji.json": json.dumps(table).encode()})
    write_tarball(folder / HIGH_CONTRAST, icons)
    return folder


def test_metadata(folder: Path, rows: list[dict[str, str]]) -> None:
    header = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "file_name,prompt"
    assert len(rows) == 60
    assert all(row["prompt"].endswith(f", {STYLE_WORDS}") for row in rows)
    assert [row["file_name"] for row in rows] == [file_name(name_of(row)) for row in rows]
    assert {row["file_name"] for row in rows} == {path.name for path in folder.glob("*.png")}
    assert len({row["file_name"] for row in rows}) == 60


def test_pictures_are_black_on_white(folder: Path, rows: list[dict[str, str]]) -> None:
    black, white = [], []
    for row in rows:
        with Image.open(folder / row["file_name"]) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 64))
            colours = np.asarray(picture.convert("RGB"))
        assert (colours.max(axis=2) == colours.min(axis=2)).all()
        black.append((colours < BLACK).mean())
        white.append((colours > WHITE).mean())
    assert len(black) == 60
    assert min(black) > 0.05
    assert min(white) > 0.3
    assert 0.2 < np.mean(black) < 0.4


def test_licence_and_origin_are_beside_the_pictures(folder: Path) -> None:
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    assert "Copyright (c) Microsoft Corporation" in licence
    assert licence.count("Permission is hereby granted, free of charge") == 2
    assert "fluentui-emoji 1.3.0" in (folder / "README.md").read_text(encoding="utf-8").replace("\n  ", " ")


def test_the_embedded_model_knows_the_things_but_not_the_style(rows: list[dict[str, str]]) -> None:
    model = embedded.resolve("embedded/pictures")
    assert model is not None
    known = (model / "concepts.txt").read_text(encoding="utf-8").splitlines()
    assert len(known) >= 300
    assert {name_of(row) for row in rows} <= set(known)
    manifest = [json.loads(line) for line in (model / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    drawn = [row for row in manifest if row["style"] == "high contrast"]
    assert {row["used_by"] for row in drawn} == {"vae"}
    choices = [row["name"] for row in drawn if row["name"] in set(known)]
    assert len(choices) >= 300
    assert draw_names(choices) == [name_of(row) for row in rows]


def test_draw_is_by_seed() -> None:
    names = [f"thing {number:03}" for number in range(200)]
    assert draw_names(names) == sorted(random.Random(7).sample(names, 60))
    assert draw_names(names) != draw_names(names, seed=8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "red-apple.png"),
        ("soft ice cream", "soft-ice-cream.png"),
        ("playing card black joker", "playing-card-black-joker.png"),
        ("father christmas (santa)", "father-christmas-santa.png"),
        ("“quoted” mark", "quoted-mark.png"),
    ],
)
def test_file_name(name: str, expected: str) -> None:
    assert file_name(name) == expected


def test_script_writes_the_folder(tarballs: Path, tmp_path: Path) -> None:
    assert list(available(tarballs)) == ["red apple", "banana"]
    folder = tmp_path / "example"
    folder.mkdir()
    (folder / "stale.png").write_bytes(b"")
    (folder / "LICENSE").write_text("stays", encoding="utf-8")
    assert write_example(tarballs, folder, count=2) == ["banana", "red apple"]
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "banana.png", "metadata.csv", "red-apple.png"]
    assert read_rows(folder) == [
        {"file_name": "banana.png", "prompt": "banana, high contrast icon"},
        {"file_name": "red-apple.png", "prompt": "red apple, high contrast icon"},
    ]
    with Image.open(folder / "banana.png") as picture:
        grey = np.asarray(picture)
    assert grey.shape == (64, 64)
    assert (grey[20:44, 20:44] < BLACK).all()
    assert (grey[:12] > WHITE).all()


def test_script_writes_equal_bytes_twice(tarballs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_example(tarballs, tmp_path / name, count=2)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert len(first) == 3
    assert first == second
