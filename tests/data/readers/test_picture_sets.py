"""Several data sets at once: regularisation, turns, class words, weights, sizes, and rules that say nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lora_scripts.data.order import visits
from lora_scripts.data.record import AS_TRAINED, CaptionRules, Dataset, Sizes
from tests.data.readers.test_pictures import ids, picture, said, scan


def folder(path: Path, count: int, words: str | None = None) -> Path:
    for i in range(count):
        picture(path / f"{i}.png")
        if words is not None:
            (path / f"{i}.txt").write_text(words)
    return path


def test_regularisation_and_turns(tmp_path: Path):
    own = Dataset(folder(tmp_path / "own", 3, "a cat"), repeats=2)
    first = Dataset(folder(tmp_path / "first", 2), regularisation=True, visits=AS_TRAINED, weight=0.5)
    second = Dataset(folder(tmp_path / "second", 2), regularisation=True, visits=AS_TRAINED)
    third = Dataset(folder(tmp_path / "third", 2), visits=5, class_words="a dog")
    result = scan(own, first, second, third)
    assert [example.regularisation for example in result.examples] == [False] * 3 + [True] * 4 + [False] * 2
    deals = [example.deal for example in result.examples]
    assert deals == [None] * 3 + [(AS_TRAINED, None)] * 4 + [("3", 5)] * 2
    told = [visit.example for visit in visits(result.examples, 0)]
    # Six and five to learn; the two sets of regularisation have as many together.
    assert [sum(i in part for i in told) for part in (range(3), range(3, 7), range(7, 9))] == [6, 11, 5]
    assert [note.params["path"].name for note in result.notes if note.code == "data.as_trained"] == ["first", "second"]
    assert said(result, "dealt") == {"path": tmp_path / "third", "count": 2, "visits": 5}
    assert said(result, "captions_class") == {"source": "a dog", "count": 2}


def test_a_set_of_numbered_folders_is_dealt_by_its_numbers(tmp_path: Path):
    folder(tmp_path / "1_cat", 2)
    folder(tmp_path / "3_dog", 1)
    result = scan(Dataset(tmp_path, visits=10))
    told = [visit.example for visit in visits(result.examples, 0)]
    assert [told.count(i) for i in range(3)] == [2, 2, 6]


def test_weights_of_captions_reach_the_example(tmp_path: Path):
    folder(tmp_path, 2)
    (tmp_path / "metadata.csv").write_text("file_name,prompt,weight\n0.png,a,3\n0.png,b,1\n1.png,c,5\n")
    first, second = scan(tmp_path).examples
    assert (first.captions, first.caption_weights) == (("a", "b"), (3.0, 1.0)) and second.caption_weights == ()
    assert said(scan(tmp_path), "several_captions") == {"count": 1}
    others = {first.fingerprint}
    for weights in ((), (3.0, 2.0), (1.0, 3.0)):
        others.add(replace(first, caption_weights=weights).fingerprint)
    assert len(others) == 4


def test_fingerprints_without_masks_and_weights_are_what_they_were(tmp_path: Path):
    """A run that was started before there were any is resumed."""
    import hashlib

    (example,) = scan(folder(tmp_path, 1, "a cat")).examples
    words = "\0".join((example.sha256, "(64, 64)", "a cat"))
    assert example.fingerprint == hashlib.sha256(words.encode()).hexdigest()


def test_rules_that_say_nothing_are_told(tmp_path: Path):
    rules = CaptionRules(keep_tags=("Red", "blue"), tag_chances={"flat": 0.5, "round": 0.5}, keep_separator="|||")
    own = Dataset(folder(tmp_path / "own", 2, "a disc, red, FLAT"), captions=rules)
    result = scan(own)
    assert said(result, "tags_unseen") == {"count": 2, "examples": "blue, round"}
    assert said(result, "separator_unseen") == {"separator": "|||"}
    # What stands in another set with the same rules has been seen.
    other = Dataset(folder(tmp_path / "other", 1, "a cat ||| blue, round"), captions=rules)
    codes = {note.code for note in scan(own, other).notes}
    assert not codes & {"data.tags_unseen", "data.separator_unseen"}
    # A set without the rule does not count.
    other = replace(other, captions=CaptionRules())
    assert said(scan(own, other), "tags_unseen")["count"] == 2


def test_what_a_preview_asks_for_is_what_visits_see(tmp_path: Path):
    rules = CaptionRules(trigger="sks", prefix="photo of", keep_separator="|||")
    (example,) = scan(Dataset(folder(tmp_path, 1, "a cat ||| sitting"), captions=rules)).examples
    assert example.title == "sks, photo of a cat, sitting"


def test_several_sizes_of_a_picture(tmp_path: Path):
    picture(tmp_path / "large.png", (128, 128))
    picture(tmp_path / "small.png", (64, 64))
    result = scan(Dataset(tmp_path, repeats=3), sizes=Sizes((64, 96), 32))
    # The small one is never enlarged: one bucket serves both.
    assert ids(result) == ["0/large.png@64x64", "0/large.png@96x96", "0/small.png@64x64"]
    assert said(result, "resolutions") == {"resolutions": "64, 96", "count": 3, "pictures": 2}
    assert len(visits(result.examples, 0)) == 9
    assert all(bucket <= size for e in result.examples for bucket, size in zip(e.bucket, e.size, strict=True))
    assert len({example.split_key for example in result.examples[:2]}) == 1
    assert "data.resolutions" not in {note.code for note in scan(tmp_path).notes}


@pytest.mark.parametrize("wanted", [4, 7])
def test_sizes_are_dealt_too(tmp_path: Path, wanted: int):
    picture(tmp_path / "large.png", (128, 128))
    result = scan(Dataset(tmp_path, visits=wanted), sizes=Sizes((64, 96), 32))
    assert len(visits(result.examples, 0)) == len(visits(result.examples, 1)) == wanted
