"""The trigger, its misspellings, and what fuses with it: exact findings on sets made by hand, English and Chinese."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lora_scripts.doctor import terms, words
from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.trigger import document_frequency, find_trigger, misspelt, respelt
from tests.doctor.caption_survey import survey_of

ANIMALS = "fox owl hedgehog badger otter rabbit deer squirrel mouse heron frog toad".split()
PLACES = "a meadow|the riverbank|a stone wall|the barn|an old bridge|the kitchen|a library|the harbour".split("|")
ACTS = "sleeping|running|reading a book|jumping|eating an apple|looking up".split("|")
CHINESE = [
    "一只猫坐在窗台上，阳光",
    "一只狗在草地上奔跑",
    "一个女孩在看书，雨天",
    "老人在公园里下棋",
    "海边的灯塔，黄昏",
    "雪山下的木屋",
    "集市上的水果摊",
    "一辆红色自行车靠在墙边",
    "一盏旧台灯放在木桌上",
    "孩子们在放风筝",
]


def planted(trigger: str = "zorblax", wrong: str = "zorblxa", pattern: str = "{}, a {} {} in {}") -> dict[str, str]:
    """Twenty captions; one has the trigger misspelt, and eighteen have a scarf."""
    captions = {}
    for i in range(20):
        text = pattern.format(wrong if i == 7 else trigger, ANIMALS[i % 12], ACTS[i % 6], PLACES[i % 8])
        captions[f"{i:02}.png"] = text + ("" if i in (3, 13) else ", scarf")
    return captions


def found(captions, **settings) -> dict[str, Finding]:
    findings = words.find(survey_of(captions, **settings))
    assert len({finding.name for finding in findings}) == len(findings)
    for finding in findings:
        assert all(finding.sentence(part) for part in ("what", "why", "fix"))
    return {finding.name: finding for finding in findings}


def named(findings: dict[str, Finding]) -> set[str]:
    return {file for finding in findings.values() for item in finding.items for file in item.files}


@pytest.mark.parametrize(
    ("trigger", "wrong", "pattern"),
    [
        ("zorblax", "zorblxa", "{}, a {} {} in {}"),
        ("sks", "kss", "a photograph of {} {} {} in {}"),
        ("luna", "lnua", "{}, {}, {}, {}"),
        ("ohwx person", "ohxw person", "{} with a {} {} in {}"),
        ("my_char", "my-char", "{}, {}, {}, {}"),
        ("Mistyfox", "misty fox", "{}, a {} {} in {}"),
        ("zwxfox", "zwxfoxsitting", "{}, a {} {} in {}"),
    ],
)
def test_a_misspelt_trigger_and_a_fused_word_are_all_that_is_found(trigger: str, wrong: str, pattern: str) -> None:
    findings = found(planted(trigger, wrong, pattern))
    assert named(findings) == {"07.png"}
    assert findings["trigger_misspelt"].severity is Severity.MUST
    assert findings["trigger_misspelt"].fix == "respell_trigger"
    assert "trigger_missing" not in findings
    assert "scarf (18/20)" in findings["fused_words"].examples
    assert findings["fused_words"].severity is Severity.SHOULD
    assert len(findings["fused_words"].examples) <= 3


def test_what_a_fix_needs_is_said() -> None:
    finding = found(planted("Zorblax"))["trigger_misspelt"]
    assert (finding.params["trigger"], finding.params["found"]) == ("Zorblax", "zorblxa")
    (item,) = finding.items
    assert item.detail is not None
    assert (item.detail.params["trigger"], item.detail.params["found"]) == ("Zorblax", "zorblxa")


@pytest.mark.parametrize(
    ("caption", "found", "word", "expected"),
    [
        ("Zorblxa, a fox", "zorblxa", "zorblax", "zorblax, a fox"),
        ("kssing a photo of kss dog", "kss", "sks", "kssing a photo of sks dog"),
        ("misty  fox in rain", "misty fox", "Mistyfox", "Mistyfox in rain"),
        ("zwxfoxsitting down", "zwxfoxsitting", "zwxfox", "zwxfox sitting down"),
        ("在墨染枫里", "墨染枫", "墨染风", "在墨染风里"),
        ("nothing here", "zorblxa", "zorblax", "nothing here"),
    ],
)
def test_respelt(caption: str, found: str, word: str, expected: str) -> None:
    assert respelt(caption, found, word) == expected


def test_captions_without_the_trigger_are_named() -> None:
    captions = planted(wrong="zorblax")
    captions["05.png"] = "a heron in the kitchen, scarf"
    findings = found(captions)
    assert named(findings) == {"05.png"}
    assert findings["trigger_missing"].params["trigger"] == "zorblax"
    assert "trigger_misspelt" not in findings


def test_a_trigger_that_is_given_needs_no_share_and_may_be_ordinary() -> None:
    captions = planted("fern", "fren")
    assert named(found(captions, trigger="fern")) == {"07.png"}
    findings = found(captions, trigger="granite")
    assert findings["trigger_nowhere"].count == 20
    assert named(findings) == set()
    assert "trigger_missing" not in found(captions, trigger="")


@pytest.mark.parametrize("near", ["icons", "iconic", "iron", "lion"])
def test_an_ordinary_word_that_happens_to_be_near_is_no_misspelling(near: str) -> None:
    captions = {f"{i}.png": f"a {ANIMALS[i]} drawn as icon" for i in range(12)}
    captions["5.png"] = f"a {ANIMALS[5]} drawn as {near}"
    assert "trigger_misspelt" not in found(captions)
    assert "trigger_misspelt" not in found(captions, trigger="icon")


def test_a_word_that_stands_beside_the_trigger_elsewhere_is_no_misspelling() -> None:
    captions = planted(wrong="zorblax")
    captions |= {f"{i:02}.png": captions[f"{i:02}.png"] + ", zorblay" for i in (1, 2)}
    captions["05.png"] = "zorblay in the kitchen, scarf"
    assert "trigger_misspelt" not in found(captions)


def test_case_and_width_make_no_other_word() -> None:
    captions = planted(wrong="ZORBLAX")
    captions["02.png"] = captions["02.png"].replace("zorblax", "ｚｏｒｂｌａｘ")
    findings = found(captions)
    assert named(findings) == set()
    assert findings["trigger_inferred"].count == 20


def test_the_example_of_the_repository_has_nothing_to_correct(root: Path) -> None:
    with (root / "examples/style_high_contrast/metadata.csv").open(encoding="utf-8", newline="") as file:
        captions = {row["file_name"]: row["prompt"] for row in csv.DictReader(file)}
    assert len(captions) == 60
    for kind in ("", "style"):
        findings = found(captions, kind=kind)
        assert {finding.severity for finding in findings.values()} == {Severity.GOOD}
        assert list(findings["shared_words"].examples) == ["high contrast icon (60/60)"]


def test_a_set_without_a_trigger() -> None:
    captions = {f"{i}.png": f"{ANIMALS[i]} {ACTS[i % 6]} near {PLACES[i % 8]}" for i in range(12)}
    assert found(captions) == {}
    assert list(found(captions, kind="person")) == ["no_trigger"]
    assert words.find(survey_of({})) == ()
    assert words.find(survey_of({"a.png": ""})) == ()


def test_words_in_most_captions_are_good_to_know() -> None:
    captions = planted(wrong="zorblax")
    captions |= {f"{i:02}.png": captions[f"{i:02}.png"] + ", snow" for i in range(14)}
    findings = found(captions)
    assert findings["frequent_words"].severity is Severity.GOOD
    assert list(findings["frequent_words"].examples) == ["snow (14/20)"]


def test_a_phrase_that_is_rarer_than_its_word_is_not_told_besides() -> None:
    captions = planted(wrong="zorblax")
    captions |= {f"{i:02}.png": captions[f"{i:02}.png"].replace("scarf", "red scarf") for i in range(15)}
    findings = found(captions)
    assert list(findings["fused_words"].examples) == ["scarf (18/20)"]
    assert list(findings["frequent_words"].examples) == ["red (13/20)"]


def test_a_class_word_is_no_fused_word() -> None:
    captions = planted("sks woman", "sks woman", "{}, {} {} near {}")
    findings = found(captions)
    assert findings["class_word"].params["word"] == "woman"
    assert list(findings["fused_words"].examples) == ["scarf (18/20)"]


def test_the_style_of_a_trigger_is_its_class() -> None:
    captions = {f"{i}.png": f"{animal} {ACTS[i % 6]}, in the style of vblnk" for i, animal in enumerate(ANIMALS)}
    assert set(found(captions)) == {"trigger_inferred", "class_word"}


def test_a_style_says_its_medium_and_a_person_her_hair() -> None:
    captions = {name: text + ", watercolor painting" for name, text in planted(wrong="zorblax").items()}
    findings = found(captions, kind="style")
    assert list(findings["medium_words"].examples) == ["watercolor painting (20/20)"]
    assert findings["medium_words"].severity is Severity.SHOULD
    captions = {name: text + ", long blonde hair, blue eyes" for name, text in planted(wrong="zorblax").items()}
    leak = found(captions, kind="person")["identity_leak"]
    assert (leak.count, list(leak.examples)) == (20, ["blonde hair (20/20)", "blue eyes (20/20)"])
    assert "identity_leak" not in found(captions, kind="thing")


def test_chinese_captions() -> None:
    captions = {f"{i}.png": f"abcx，{text}，白色背景" for i, text in enumerate(CHINESE)}
    captions["5.png"] = captions["5.png"].replace("abcx", "abxc")
    findings = found(captions)
    assert named(findings) == {"5.png"}
    assert list(findings["fused_words"].examples) == ["白色背景 (10/10)"]
    captions = {f"{i}.png": f"墨染风，{text}" for i, text in enumerate(CHINESE)}
    captions["5.png"] = captions["5.png"].replace("墨染风", "墨染枫")
    assert find_trigger({name: (text,) for name, text in captions.items()}, None) is not None
    findings = found(captions, trigger="墨染风")
    assert named(findings) == {"5.png"}
    assert findings["trigger_misspelt"].params["found"] == "墨染枫"


def test_a_picture_with_several_captions_counts_once() -> None:
    captions = {f"{i}.png": (f"zorblax, a {ANIMALS[i]}", f"zorblax and {ACTS[i % 6]}, lantern") for i in range(10)}
    findings = found(captions)
    assert list(findings["fused_words"].examples) == ["lantern (10/10)"]
    assert findings["trigger_inferred"].params["total"] == 10


def test_many_captions_are_counted_as_few_are() -> None:
    few = {f"{i}.png": (text,) for i, text in enumerate(planted().values())}
    many = {f"{i}.png": few[f"{i % 20}.png"] for i in range(2000)}
    assert {phrase: 100 * n for phrase, n in document_frequency(few, 0.6).items()} == document_frequency(many, 0.6)
    trigger = find_trigger(many, None)
    assert trigger is not None
    assert (trigger.word, trigger.sure, len(misspelt(many, trigger))) == ("zorblax", True, 100)


@pytest.mark.parametrize(
    ("first", "second", "far"),
    [
        ("abcd", "abcd", 0),
        ("abcd", "abdc", 1),
        ("abcd", "abxd", 1),
        ("abcd", "acd", 1),
        ("abcd", "badc", 2),
        ("a", "wxyz", 3),
    ],
)
def test_distance(first: str, second: str, far: int) -> None:
    assert terms.distance(first, second, 2) == far
    assert terms.distance(second, first, 2) == far
