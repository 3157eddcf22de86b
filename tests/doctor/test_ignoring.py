"""What a person chose to ignore: written, read back, applied, and never hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_scripts.doctor import ignoring
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.ignoring import Entry
from lora_scripts.errors import ConfigError

MISSING = Finding(
    "captions", "missing", Severity.SHOULD, 3, items=[Item(("a/1.png",)), Item(("a/2.png",)), Item(("b.png",))]
)


def test_entries_are_read_back_as_they_were_written(tmp_path: Path):
    entries = [
        Entry("captions.missing", 'on "purpose"\nreally \\ 就是这样 \x7f 😀', ('we"ird\n*.png', "图/*")),
        Entry("captions.empty", "fine"),
    ]
    (tmp_path / ignoring.FILE).write_text("# mine\n", encoding="utf-8")
    for entry in entries:
        ignoring.add(tmp_path, entry)
    assert (tmp_path / ignoring.FILE).read_text(encoding="utf-8").startswith("# mine\n\n[[ignore]]\n")
    read = ignoring.read(tmp_path)
    assert [entry.id for entry in read] == ["captions.missing", "captions.empty"]
    assert read[0].files == entries[0].files
    assert read[0].reason == entries[0].reason.replace("\x7f", "\\x7f")
    assert [path.name for path in tmp_path.iterdir()] == [ignoring.FILE]


@pytest.mark.parametrize("files", [("a/*",), ("a/1.png", "a/2.png")])
def test_a_pattern_covers_its_items_and_the_rest_stays(files: tuple[str, ...]):
    kept, ignored, unmatched = ignoring.apply([MISSING], [Entry("captions.missing", "why", files)])
    assert [(one.count, [item.files[0] for item in one.items], one.reason) for one in kept] == [(1, ["b.png"], "")]
    assert [(one.count, one.reason) for one in ignored] == [(2, "why")]
    assert unmatched == []


def test_without_a_pattern_all_of_it_is_ignored_and_what_matches_nothing_is_told():
    entries = [Entry("captions.missing", "why"), Entry("captions.empty", "x"), Entry("captions.missing", "x", ("z*",))]
    kept, ignored, unmatched = ignoring.apply([MISSING], entries)
    assert (kept, [one.count for one in ignored]) == ([], [3])
    assert unmatched == entries[1:]


def test_of_files_that_belong_together_the_good_one_need_not_match():
    pairs = Finding("captions", "shared", Severity.MUST, 2, items=[Item(("a.png", "b.png")), Item(("a.png", "c.png"))])
    kept, ignored, _ = ignoring.apply([pairs], [Entry("captions.shared", "why", ("b.png",))])
    assert [item.files for item in kept[0].items] == [("a.png", "c.png")]
    assert [item.files for item in ignored[0].items] == [("a.png", "b.png")]


def test_a_row_is_covered_by_its_file_s_name():
    rows = Finding("captions", "unreadable", Severity.MUST, 2, items=[Item(("a.csv:2",)), Item(("b.csv:3",))])
    kept, _, _ = ignoring.apply([rows], [Entry("captions.unreadable", "why", ("a.csv",))])
    assert [item.files for item in kept[0].items] == [("b.csv:3",)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[ignore]]\nid = 'captions.empty'\nreason = 'x'\n[[ignore]]\nid = \n", "line 5"),
        ("[[ignore]]\nid = 'captions.empty'\n", "line 1: an entry needs an id and a reason"),
        ("\n[[ignore]]\nid = 'captions.empty'\nreason = ' '\n", "line 2: an entry needs an id and a reason"),
        ("[[ignore]]\nid = 'captions.empty'\nreason = 'x'\nfile = 'x'\n", "line 1: file is not understood"),
        ("ignored = 1\n", "ignored is not understood"),
        ("ignore = [1]\n", "ignore is not understood"),
        ("[[ignore]]\nid = 'captions.empty'\nreason = 'x'\nfiles = [1]\n", "line 1"),
        ("[[ignore]]\nid = 'a", "line 2"),
        ("\n\n\x00", "line 3"),
    ],
)
def test_a_broken_file_is_a_sentence_with_the_line(text: str, said: str, tmp_path: Path):
    (tmp_path / ignoring.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        ignoring.read(tmp_path)
    assert said in str(refused.value)
    assert ignoring.FILE in str(refused.value)


def test_bytes_that_are_no_text_are_a_sentence_with_the_line(tmp_path: Path):
    (tmp_path / ignoring.FILE).write_bytes(b"# \n# \xff\n")
    with pytest.raises(ConfigError, match="line 2"):
        ignoring.read(tmp_path)


def test_what_cannot_be_ignored(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no finding captions\.mising; nearest: captions\.missing"):
        ignoring.add(tmp_path, Entry("captions.mising", "why"))
    with pytest.raises(ConfigError, match="without a reason"):
        ignoring.add(tmp_path, Entry("captions.missing", " "))
    ignoring.add(tmp_path, Entry("captions.missing", "because"))
    with pytest.raises(ConfigError, match=r"already \(because\)"):
        ignoring.add(tmp_path, Entry("captions.missing", "again"))
    assert len(ignoring.read(tmp_path)) == 1
