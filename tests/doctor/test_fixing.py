"""What `--fix` does to a folder, and that `--undo` gives back every byte, also after a kill."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_scripts.data import folder as folders
from lora_scripts.data.caption_files import assign
from lora_scripts.data.caption_tables import read_table
from lora_scripts.data.record import Dataset, Note
from lora_scripts.doctor import editing, fixing, journal
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import DataError, MachineError

CSV = (
    '\ufefffile_name;prompt\r\n"a.png";"a skz dog,\r\nskz again"\r\nb.png;skz skzx\r\n\r\n'
    'gone.png;nothing\r\nd.jpg;"d, ""q"""\r\n'
)


def aside(*items: tuple[str, ...]) -> Finding:
    return Finding(
        "captions", "shared", Severity.MUST, len(items), items=[Item(each) for each in items], fix="move_aside"
    )


def respell(*names: str, found: str = "skz", trigger: str = "sks") -> Finding:
    params = {"found": found, "trigger": trigger, "caption": "..."}
    items = [Item((name,), Note("captions.trigger_misspelt.detail", params)) for name in names]
    return Finding("captions", "trigger_misspelt", Severity.MUST, len(items), params, items, fix="respell_trigger")


def rename(*names: str) -> Finding:
    items = [Item((name,)) for name in names]
    return Finding("captions", "missing", Severity.SHOULD, len(items), items=items, fix="rename_suffix")


def snapshot(root: Path) -> dict[str, tuple[bytes, int, float]]:
    """Every file with its bytes, mode and time, links as what they point to."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            found[path.relative_to(root).as_posix()] = (os.fsencode(os.readlink(path)), 0, 0.0)
        elif path.is_file():
            found[path.relative_to(root).as_posix()] = (path.read_bytes(), status.st_mode, status.st_mtime)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "sub/c.png", "d.jpg")):
        Image.new("RGB", (8, 8), (number * 50, 0, 0)).save(root / name, "PNG")
    (root / "sub/c.txt").write_text("a SKZ cat\n", encoding="utf-8")
    (root / "sub/c.caption").write_text("passed over", encoding="utf-8")
    (root / "metadata.csv").write_bytes(CSV.encode("utf-8"))
    os.chmod(root / "metadata.csv", 0o640)
    return root


def do(root: Path, *findings: Finding) -> fixing.Plan:
    plan = fixing.plan(findings, Settings(root))
    journal.perform(root, plan.changes)
    return plan


def test_everything_at_once_and_back(root: Path):
    before = snapshot(root)
    plan = do(root, aside(("a.png", "b.png"), ("gone.png",), ("sub/c.png",)), respell("a.png"), rename("d.jpg"))
    assert plan.left == []
    assert len(plan.told) == 7  # b, row of gone, c and its two texts, respelt, renamed
    names = {name for name in snapshot(root) if not name.startswith(".lora-doctor/")}
    assert names == {"a.png", "d.png", "metadata.csv"}
    assert (root / "metadata.csv").read_bytes().decode("utf-8") == (
        '\ufefffile_name;prompt\r\n"a.png";"a sks dog,\r\nsks again"\r\nd.png;"d, ""q"""\r\n'
    )
    if os.name == "posix":
        assert stat.S_IMODE((root / "metadata.csv").stat().st_mode) == 0o640
    lying = folders.walk(root)
    assert lying.pictures == ["a.png", "d.png"]
    assert assign(Dataset(root), lying.pictures, lying.others).pictures["d.png"].captions == ('d, "q"',)
    assert {step.path for step in journal.undo(root)} == {
        "b.png",
        "sub/c.png",
        "sub/c.txt",
        "sub/c.caption",
        "d.jpg",
        "metadata.csv",
    }
    assert snapshot(root) == before
    with pytest.raises(DataError, match="nothing to undo"):
        journal.undo(root)


def test_a_text_beside_the_picture_is_respelt_whole_words_only(root: Path):
    (root / "metadata.csv").unlink()
    (root / "sub/c.txt").write_bytes(b"Skz, skzed skz\r\n")
    do(root, respell("sub/c.png"))
    assert (root / "sub/c.txt").read_bytes() == b"sks, skzed sks\r\n"
    journal.undo(root)
    assert (root / "sub/c.txt").read_bytes() == b"Skz, skzed skz\r\n"


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ('{"file_name": "skz.png", "text": "a skz, skz"}', '{"file_name": "skz.png", "text": "a sks, sks"}'),
        ('{"text":["skz 1","2"], "x": 1, "image":"skz.png"}', '{"text":["sks 1","2"], "x": 1, "image":"skz.png"}'),
    ],
)
def test_a_row_of_json_lines_keeps_its_picture_s_name(line: str, after: str, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "skz.png")
    table = tmp_path / "metadata.jsonl"
    table.write_text(f'{{"file_name": "a.png", "text": "skz"}}\n{line}\n', encoding="utf-8")
    do(tmp_path, respell("skz.png"))
    assert table.read_text(encoding="utf-8").splitlines() == ['{"file_name": "a.png", "text": "skz"}', after]


def test_what_cannot_be_done_safely_is_left_and_told(root: Path, tmp_path: Path):
    outside = tmp_path / "outside.txt"
    outside.write_text("skz", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(root / "link.png")
    (root / "link.txt").symlink_to(outside)
    (root / "inside.png").symlink_to(root / "a.png")
    Image.new("RGB", (8, 8)).save(root / "e.jpg", "PNG")
    Image.new("RGB", (8, 8)).save(root / "e.png", "PNG")
    before = snapshot(root), outside.read_bytes()
    plan = fixing.plan(
        [aside(("inside.png",), ("../outside.txt",), ("never.png",)), respell("link.png"), rename("e.jpg")],
        Settings(root),
    )
    assert plan.changes == []
    assert [note.code.rpartition(".")[2] for note in plan.left] == [
        "left_link",
        "left_link",
        "left_row",
        "left_name",
        "left_words",
    ]
    assert (snapshot(root), outside.read_bytes()) == before


def test_a_table_outside_the_folder_is_not_touched_and_its_pictures_stay(root: Path, tmp_path: Path):
    table = (root / "metadata.csv").rename(tmp_path / "captions.csv")
    plan = fixing.plan([aside(("a.png", "b.png")), respell("a.png")], Settings(root, metadata=table))
    assert (plan.changes, len(plan.left)) == ([], 2)


def test_a_table_in_another_encoding_or_broken_is_left_alone(root: Path):
    for data in (CSV.encode("utf-16"), CSV.encode() + b'"unclosed\n'):
        (root / "metadata.csv").write_bytes(data)
        plan = fixing.plan([aside(("a.png", "b.png")), respell("a.png"), rename("d.jpg")], Settings(root))
        assert (plan.changes, len(plan.left)) == ([], 3)


def test_a_caption_that_another_picture_has_too_stays(root: Path):
    (root / "metadata.csv").unlink()
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (8, 8)).save(root / name)
    (root / "x.txt").write_text("both", encoding="utf-8")
    do(root, aside(("x.png", "x.jpg")))
    assert (root / "x.txt").exists() and not (root / "x.jpg").exists()


def test_undo_refuses_where_a_file_was_changed_since(root: Path):
    do(root, aside(("a.png", "b.png")), respell("a.png"))
    (root / "metadata.csv").write_text("file_name,prompt\na.png,mine\n", encoding="utf-8")
    (root / "b.png").write_bytes(b"new")
    after = snapshot(root)
    with pytest.raises(DataError, match="2 files were changed since"):
        journal.undo(root)
    assert snapshot(root) == after


def test_fixes_are_undone_one_by_one_the_last_first(root: Path):
    first = snapshot(root)
    do(root, respell("a.png"))
    second = {name: value for name, value in snapshot(root).items() if not name.startswith(".lora-doctor")}
    do(root, aside(("a.png", "b.png")))
    journal.undo(root)
    assert {name: value for name, value in snapshot(root).items() if not name.startswith(".lora-doctor")} == second
    journal.undo(root)
    assert snapshot(root) == first


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b'{"schema": 2}',
        b'{"schema":1,"state":"done","steps":[{"path":"../x","place":"y","before":"","after":""}]}',
    ],
)
def test_a_journal_that_is_damaged_or_leaves_the_folder_undoes_nothing(value: bytes, root: Path):
    do(root, respell("a.png"))
    (path,) = (root / journal.FOLDER).glob("*/journal.json")
    path.write_bytes(value)
    after = snapshot(root)
    with pytest.raises(DataError, match=r"journal .* is damaged"):
        journal.undo(root)
    assert snapshot(root) == after


def test_a_failure_half_way_takes_back_what_was_done(root: Path, monkeypatch: pytest.MonkeyPatch):
    before = snapshot(root)
    plan = fixing.plan([aside(("a.png", "b.png"), ("sub/c.png",))], Settings(root))
    really, left = os.rename, [2]

    def full(source: Path, target: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        really(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(MachineError, match="No space left"):
        journal.perform(root, plan.changes)
    assert snapshot(root) == before


def killed(root: Path, after: int, act: Callable[[Path], object]) -> bool:
    """Act in another process that dies after so many calls that change the disk; say if it came through."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    left = [after]

    def counted(really: Callable) -> Callable:
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return really(*arguments, **options)

        return call

    try:
        for name in ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        act(root)
        os._exit(0)
    finally:
        os._exit(1)


def all_of_it(root: Path) -> None:
    do(root, aside(("a.png", "b.png"), ("gone.png",), ("sub/c.png",)), respell("a.png"), rename("d.jpg"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be forked")
def test_a_kill_at_any_moment_leaves_what_undo_restores(root: Path):
    before = snapshot(root)
    moments, whole = 0, False
    while not whole:
        whole = killed(root, moments, all_of_it)
        moments += 1
        if not any((root / journal.FOLDER).glob("*/journal.json")):
            # Nothing had been touched; the next fix sweeps what lies there.
            assert {name: v for name, v in snapshot(root).items() if not name.startswith(".lora-doctor/")} == before
            continue
        (written,) = (root / journal.FOLDER).glob("*/journal.json")
        if json.loads(written.read_bytes())["state"] == journal.BEGUN:
            with pytest.raises(DataError, match="cut off"):
                journal.perform(root, [journal.Move("a.png")])
        # Undoing is killed as well, and begun again until its journal is gone.
        calls = 1
        while any((root / journal.FOLDER).glob("*/journal.json")):
            killed(root, calls, journal.undo)
            calls += 1
        left = snapshot(root)
        assert {name: value for name, value in left.items() if not name.startswith(".lora-doctor/")} == before
        assert [name for name in left if name.startswith(".lora-doctor/")] == []
    assert moments >= 30


def test_every_fix_that_a_check_names_exists():
    import re

    source = Path(fixing.__file__).parent
    named = {name for path in source.rglob("*.py") for name in re.findall(r'fix="([a-z_]+)"', path.read_text("utf-8"))}
    assert "respell_trigger" in named
    assert named <= fixing.FIXES.keys()


def test_a_table_says_what_it_should_after_every_edit(tmp_path: Path):
    table = tmp_path / "metadata.csv"
    table.write_bytes(CSV.encode("utf-8"))
    text = editing.decode(table.read_bytes()) or ""
    for name in ("a.png", "b.png", "gone.png", "d.jpg"):
        table.write_bytes(editing.encode(editing.without_rows(text, table, {name}) or "", b"\xef\xbb\xbf"))
        assert {row.name for row in read_table(table).rows} == {"a.png", "b.png", "gone.png", "d.jpg"} - {name}
    assert editing.without_rows(text, table, {"a.png", "b.png", "gone.png", "d.jpg"}) is None
