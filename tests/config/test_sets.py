"""Keys of data sets that contradict each other, or would do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_scripts.config.load import load
from lora_scripts.errors import ConfigError
from lora_scripts.preparation import datasets

HEAD = "base_model: base\noutput_dir: out\n"
OWN = "datasets:\n  - path: own\n"


def config(folder: Path, text: str, *overrides: str):
    path = folder / "run.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    return load(path, overrides)


BROKEN = {
    "two ways to say how often": (
        OWN + "    repeats: 3\n    visits: 7\n",
        "run.yaml:6: A data set has both visits (7, of the whole folder) and repeats (3, of each picture)",
    ),
    "nothing to learn": (
        "datasets:\n  - {path: a, regularisation: true}\n  - {path: b, regularisation: true}\n",
        "run.yaml:3: All 2 data sets are for regularisation",
    ),
    "a trigger to keep away": (
        OWN + "  - path: reg\n    regularisation: true\n    caption:\n      trigger: sks\n",
        "run.yaml:8: A data set for regularisation has the trigger sks",
    ),
    "a prior of nothing": (OWN + "prior: base\n", "run.yaml:5: prior is base, which only acts on data sets with"),
    "a floor of nothing": (OWN + "mask_floor: 0.2\n", "run.yaml:5: mask_floor is 0.2, and there is no mask"),
    "a floor of a mask that is off": (OWN + "    mask: off\nmask_floor: 0.2\n", "mask_floor is 0.2"),
    "two tags in one": (OWN + "caption: {keep_tags: ['a, b']}\n", 'caption.keep_tags names "a, b", which is no tag'),
    "no tag": (OWN + "caption: {tag_chances: {' ': 0.5}}\n", 'caption.tag_chances names " ", which is no tag'),
    "kept and not": (
        OWN + "    caption: {keep_tags: [Smile], tag_chances: {smile: 0.5}}\n",
        "run.yaml:5: datasets.0.caption has smile both in keep_tags",
    ),
    "a chance above 1": (OWN + "caption: {tag_chances: {smile: 2}}\n", "caption.tag_chances.smile is 2; allowed: <= 1"),
    "a mask without a name": (OWN + 'mask: ""\n', 'run.yaml:5: mask is ""; expected: alpha, off, or a folder.'),
    "a mask of NUL": (OWN + '    mask: "a\\0b"\n', "expected: alpha, off, or a folder."),
    "no visits": (OWN + "    visits: 0\n", "datasets.0.visits is 0; allowed: >= 1"),
    "another prior": (OWN + "prior: model\n", "prior is \"model\"; allowed: 'pictures' or 'base'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken(tmp_path: Path, case: str):
    text, wanted = BROKEN[case]
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text)
    assert caught.value.exit_code == 2 and wanted in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_table_is_whole():
    assert len(BROKEN) == 14


def test_all_are_told_at_once(tmp_path: Path):
    text = OWN + "    repeats: 3\n    visits: 7\nprior: base\nmask_floor: 0.2\ncaption: {keep_tags: ['']}\n"
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 4


SETS = """\
datasets:
  - {path: own, repeats: 2, class_words: a cat}
  - {path: other, mask: off, visits: 9}
  - {path: reg, regularisation: true}
  - {path: reg2, regularisation: true, repeats: 1, mask: alpha}
  - {path: reg3, regularisation: true, visits: 4}
mask: masks
prior: base
caption: {trigger: sks, keep_tags: [red], tag_dropout: 0.1}
"""


def test_what_the_reader_is_given(tmp_path: Path):
    made = datasets(config(tmp_path, SETS))
    assert [one.mask for one in made] == ["masks", None, None, "alpha", None]
    assert [one.visits for one in made] == [None, 9, "as trained", None, 4]
    assert [one.captions.trigger for one in made] == ["sks", "sks", "", "", ""]
    assert [one.regularisation for one in made] == [False, False, True, True, True]
    assert {one.captions.keep_tags for one in made} == {("red",)} and made[0].class_words == "a cat"


@pytest.mark.parametrize("word", ["off", "false", "none", "no", "OFF"])
def test_ways_to_say_no_mask(tmp_path: Path, word: str):
    assert datasets(config(tmp_path, OWN, f"mask={word}"))[0].mask is None
    assert datasets(config(tmp_path, f"{OWN}    mask: {word}\nmask: alpha\n"))[0].mask is None
