"""What a person finds in the checkout and in a wheel: whole, true, and free of where it was made."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_scripts import __version__
from lora_scripts.config.load import load

READMES = ("README.md", "README.zh-CN.md")
COMMANDS = (
    "pip install -c constraints.txt -e . && python train.py --config configs/quickstart.yaml",
    "lora-scripts fetch smollm2 && python train.py --config configs/llm_quickstart.yaml",
    'pip install -c constraints.txt -e ".[test]" && pytest',
)
EXPECTED = (
    *READMES,
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "NOTICE", "Makefile", "constraints.txt", "environment.yml"),
    *("pyproject.toml", "train.py", ".ci/run", ".gitignore"),
    *(
        "configs/lora_default.yaml",
        "configs/quickstart.yaml",
        "configs/llm_default.yaml",
        "configs/llm_quickstart.yaml",
    ),
    *("docs/config.md", "docs/design.md", "docs/labels.md", "docs/reliability.md", "docs/errors.md", "docs/texts.md"),
    *("examples/style_high_contrast/LICENSE", "examples/style_high_contrast/metadata.csv"),
)
FEWEST_FILES = 150
# Weights have names and numbers only in their header.
MOST_BYTES_READ = 1 << 18

# Written in pieces, so that this file does not hold what it looks for.
HOSTS = (("pypi", "org"), ("pythonhosted", "org"), ("registry.npmjs", "org"), ("download.pytorch", "org"))
TELLTALES = {
    "a path of the machine it was made on": r"(?<![\w.-])/(?:" + "|".join(("work", "root")) + r")(?![\w-])",
    "a folder beside the checkout": r"\.\./" + "shared",
    "a package registry's address": "|".join(re.escape(".".join(host)) for host in HOSTS),
    "an address to download from": r"https?://[^\s\"'<>)]+\.(?:tgz|whl|zip|tar\.gz|safetensors|ckpt|gguf|bin)\b",
}
NAMED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;+]+)$")


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    """Every file that belongs to the repository, relative to it: tracked, or not yet added and not ignored."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        # A copy without git: everything but hidden folders.
        walked = (Path(folder) / name for folder, _, files in os.walk(root) for name in files)
        names = [str(path.relative_to(root)) for path in walked]
        names = [name for name in names if not re.search(r"(^|/)(\.|__pycache__)", name) or name == ".ci/run"]
    return sorted(Path(name) for name in names if name and (root / name).is_file())


def telltales(data: bytes) -> Iterator[str]:
    """Yield what the bytes tell of the machine they were written on."""
    text = data.decode("utf-8", errors="replace")
    for what, pattern in TELLTALES.items():
        yield from (f"{what}: {match.group()}" for match in re.finditer(pattern, text))


def tree_paths(readme: str) -> list[str]:
    """Return the paths of the tree drawn in a README: the fenced block that names src/lora_scripts.

    A line is an indented name (or several, up to two spaces) and a comment; "├── └── │" count as indentation.
    """
    blocks = [block for block in re.findall(r"```\w*\n(.*?)```", readme, re.S) if "src/lora_scripts" in block]
    assert len(blocks) == 1, "one fenced block draws the tree and names src/lora_scripts"
    paths: list[str] = []
    open_folders: list[tuple[int, str]] = []
    for line in blocks[0].splitlines():
        bare = re.sub(r"[│├└─|`]", " ", line)
        names = re.split(r"\s{2,}|\s#", bare.strip())[0].split()
        if not names:
            continue
        depth = len(bare) - len(bare.lstrip())
        open_folders = [folder for folder in open_folders if folder[0] < depth]
        base = open_folders[-1][1] if open_folders else ""
        paths += [base + name for name in names]
        if names[0].endswith("/"):
            open_folders.append((depth, base + names[0]))
    return paths


def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [NAMED.match(line) for line in lines if line and not line.startswith("#")]
    assert None not in matches
    return {match[1].lower(): match[2] for match in matches if match}


def test_expected_files_exist(root: Path) -> None:
    assert [name for name in EXPECTED if not (root / name).is_file()] == []


def test_licence_is_whole(root: Path) -> None:
    text = (root / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) > 11_000


def test_changelog_knows_the_version(root: Path) -> None:
    assert f"## [{__version__}]" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_nothing_tells_where_it_was_made(root: Path, tracked: list[Path]) -> None:
    assert len(tracked) >= FEWEST_FILES
    found = []
    for name in tracked:
        with (root / name).open("rb") as file:
            data = file.read(MOST_BYTES_READ if name.suffix in (".safetensors", ".png") else -1)
        found += [f"{name}: {what}" for what in telltales(data)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("cd /" + "work/main", 1),
        ("open('/" + "root/w')", 1),
        ("read .." + "/shared/x", 1),
        ("https://" + "pypi" + ".org/simple", 1),
        ("https://" + "example.com/a-1.0.whl", 1),
        ("--work DIR, framework/work, https://arxiv.org/abs/2106.09685, /workshop", 0),
    ],
)
def test_telltale(text: str, count: int) -> None:
    assert len(list(telltales(text.encode()))) == count


def test_nothing_ignored_is_needed(root: Path) -> None:
    """`data/` is where people keep pictures and also a package: the ignore list must not hide code or weights."""
    folders = ["src", "configs/quickstart.yaml", "examples", "tests"]
    command = ["git", "-C", str(root), "ls-files", "--others", "--ignored", "--exclude-standard", "--", *folders]
    if not (root / ".git").exists():
        pytest.skip("a copy without git has no ignore list in force")
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [name for name in names if "__pycache__/" not in name] == []


@pytest.mark.parametrize("name", READMES)
def test_readme_holds_the_two_commands(root: Path, name: str) -> None:
    lines = [line.strip() for line in (root / name).read_text(encoding="utf-8").splitlines()]
    assert [command for command in COMMANDS if command not in lines] == []


@pytest.mark.parametrize("name", READMES)
def test_readme_tree_is_true(root: Path, name: str) -> None:
    paths = tree_paths((root / name).read_text(encoding="utf-8"))
    assert len(paths) >= 20
    assert [path for path in paths if not list(root.glob(path.rstrip("/")))] == []


def test_tree_is_read_right() -> None:
    drawn = """```
    train.py                 the public command
    src/lora_scripts/
    ├── errors.py  units.py  two files
    ├── data/                # pictures
    │   └── decode.py
    └── cli/
    ```"""
    expected = ["train.py", "src/lora_scripts/", "src/lora_scripts/errors.py", "src/lora_scripts/data/"]
    expected += ["src/lora_scripts/data/decode.py", "src/lora_scripts/cli/"]
    assert tree_paths(drawn) == expected


def test_readmes_are_equal_in_structure(root: Path) -> None:
    """A section, a command or a table row added to one is missing in the other until someone writes it there."""
    texts = [(root / name).read_text(encoding="utf-8") for name in READMES]
    headings, fences, rows = (
        [len(re.findall(pattern, text, re.M)) for text in texts] for pattern in (r"^#+ ", r"^```", r"^\|")
    )
    assert headings[0] == headings[1]
    assert fences[0] == fences[1]
    assert rows[0] == rows[1]
    assert tree_paths(texts[0]) == tree_paths(texts[1])


def test_every_config_loads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    paths = [path for path in sorted((root / "configs").rglob("*.yaml")) if not path.name.startswith("my_")]
    assert len(paths) >= 2
    for path in paths:
        assert load(path.relative_to(root)).output_dir


def test_quickstart_data_is_in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    folder = load(Path("configs/quickstart.yaml")).train_data_dir
    assert folder is not None
    with (root / folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert [row["file_name"] for row in rows if not (root / folder / row["file_name"]).is_file()] == []


def test_every_dependency_is_pinned(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for names in project["optional-dependencies"].values() for name in names),
    ]
    names = {re.split(r"[\[<>=~!; ]", name)[0].replace("_", "-").lower() for name in wanted} - {project["name"]}
    pinned = pins(root)
    assert len(names) >= 20
    assert names - pinned.keys() == set()
    assert pinned["torch"] == "2.13.0"
    assert len(pinned) >= 70
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda"))]


def test_wheel_holds_weights_configs_and_tokenizer(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = root / "src"
    mine = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert mine - names == set()
    for name in (
        "lora_scripts/configs/lora_default.yaml",
        "lora_scripts/configs/quickstart.yaml",
        "lora_scripts/embedded/pictures/model_index.json",
        "lora_scripts/embedded/pictures/concepts.txt",
        "lora_scripts/embedded/pictures/tokenizer/vocab.json",
        "lora_scripts/families/clip_tokenizer/vocab.json",
        "lora_scripts/families/clip_tokenizer/merges.txt",
        "lora_scripts/messages/en/config.toml",
        "lora_scripts/messages/zh_CN/config.toml",
    ):
        assert name in names
    assert any(re.search(r"embedded/pictures/unet/.*\.safetensors$", name) for name in names)
    assert not any(name.startswith(("tests/", "examples/")) for name in names)
