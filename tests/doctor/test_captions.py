"""What is wrong with captions as files and texts: exact findings on sets made by hand, and none on innocent ones."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lora_scripts import messages
from lora_scripts.doctor import caption_forms, captions, languages, tokens
from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import BaseModelError, Problem
from tests import tiny
from tests.doctor.caption_survey import survey_of

THINGS = "sofa table chair ladder roof tree meadow river bridge harbour".split()
PROSE = {f"{i}.png": f"a grey cat is sitting on the {thing} with number {i}" for i, thing in enumerate(THINGS)}
TAGS = {f"{i}.png": f"cat, grey, {thing}, number {i}, outdoors" for i, thing in enumerate(THINGS)}
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


def found(survey) -> dict[str, Finding]:
    findings = captions.find(survey)
    assert len({finding.name for finding in findings}) == len(findings)
    for finding in findings:
        assert all(finding.sentence(part) for part in ("what", "why", "fix"))
        assert not (finding.items and finding.examples)
        for item in finding.items:
            assert item.detail is None or messages.text(item.detail.code, **item.detail.params)
    return {finding.name: finding for finding in findings}


def files(finding: Finding) -> list[tuple[str, ...]]:
    return [item.files for item in finding.items]


@pytest.mark.parametrize("innocent", [PROSE, TAGS, {f"{i}.png": text for i, text in enumerate(CHINESE)}])
def test_clean_captions_have_statistics_only(innocent: dict[str, str]) -> None:
    assert len(innocent) == 10
    assert list(found(survey_of(innocent))) == ["lengths"]


def test_the_example_of_the_repository(root: Path) -> None:
    with (root / "examples/style_high_contrast/metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["file_name"]: row["prompt"] for row in csv.DictReader(file)}
    findings = found(survey_of(rows))
    assert list(findings) == ["lengths"]
    assert findings["lengths"].params == {"median": 6, "most": 9, "limit": 75, "long": 0, "share": "0%"}


def test_problems_of_files_become_findings() -> None:
    problems = [
        Problem("data.table_cells", {"path": "metadata.csv", "line": 4, "found": 3, "expected": 2}, "metadata.csv:4"),
        Problem("data.shared_caption", {"path": "a.txt", "first": "a.png", "second": "a.jpg"}, "a.txt"),
        Problem("captions.without_picture.row", {"file": "metadata.csv", "line": 7}, "ghost.png"),
    ]
    findings = found(survey_of(PROSE, problems))
    assert {name: (finding.severity, files(finding)) for name, finding in findings.items() if finding.items} == {
        "unreadable": (Severity.MUST, [("metadata.csv:4",)]),
        "shared": (Severity.MUST, [("a.png", "a.jpg")]),
        "without_picture": (Severity.MUST, [("ghost.png",)]),
    }
    stray = [Problem("captions.without_picture.sidecar", {}, "ghost.txt")]
    assert found(survey_of(PROSE, stray))["without_picture"].severity is Severity.SHOULD


def test_pictures_without_a_caption_are_named_and_unreadable_ones_are_not() -> None:
    survey = survey_of(
        PROSE | {"blank.png": "  "}, without=("bare.png", "broken.png", "hidden.png"), broken=("broken.png",)
    )
    survey.caption_sources["hidden.png"] = Path("hidden.txt")
    findings = found(survey)
    assert (files(findings["missing"]), files(findings["empty"])) == ([("bare.png",)], [("blank.png",)])
    assert findings["missing"].severity is Severity.SHOULD


def test_no_captions_at_all_is_one_finding() -> None:
    findings = found(survey_of({"a.png": ""}, without=("b.png",)))
    assert list(findings) == ["none"]
    assert (findings["none"].count, files(findings["none"])) == (2, [])
    assert found(survey_of({})) == {}


@pytest.mark.parametrize(
    "text",
    [
        "a cafÃ© in Paris",
        "itâ€™s a cat",
        "20Â°C outside",
        "ÐºÐ¾Ñ‚ on a roof",
        "a \ufffd cat",
        "猫锟斤拷猫",
        "一只灰猫".encode().decode("latin-1"),
    ],
)
def test_mojibake_is_named(text: str) -> None:
    findings = found(survey_of(PROSE | {"x.png": text}))
    assert files(findings["damaged"]) == [("x.png",)]
    assert findings["damaged"].severity is Severity.MUST


@pytest.mark.parametrize(
    "text",
    [
        "CAFÉ» at noon",
        "MENÜ–KARTE",
        "SÃO PAULO",
        "l’été… enfin",
        "naïve façade, 20 °C",
        "Ångström",
        "ÂNCORA",
        "crème brûlée “x”",
    ],
)
def test_accents_are_no_damage(text: str) -> None:
    assert caption_forms.mojibake(text) == ""


def test_signs_that_cannot_be_seen() -> None:
    texts = {"x.png": "a \x07 cat on a wall", "y.png": "a\u200bcat on a fence", "z.png": "two\nlines\tand \u200f"}
    assert files(found(survey_of(PROSE | texts))["control"]) == [("x.png",), ("y.png",)]


def test_what_is_longer_than_the_base_reads_is_named_longest_first() -> None:
    texts = {"x.png": "cat " * 80, "y.png": "dog " * 120, "z.png": "owl " * 75}
    finding = found(survey_of(PROSE | texts))["too_long"]
    assert [(item.files, item.detail and item.detail.params["tokens"]) for item in finding.items] == [
        (("y.png",), 120),
        (("x.png",), 80),
    ]
    assert files(found(survey_of(PROSE | texts, max_tokens=100))["too_long"]) == [("y.png",)]


def test_a_base_says_its_own_limit_and_tokens(tmp_path: Path) -> None:
    base = tiny.tiny_sd_folder(tmp_path / "base")
    assert tokens.limit(Settings(tmp_path, base=base)) == 75
    assert tokens.count(Settings(tmp_path, base=base), ["a cat", ""]) == [2, 0]
    (tmp_path / "other").mkdir()
    with pytest.raises(BaseModelError):
        tokens.limit(Settings(tmp_path, base=tmp_path / "other"))


def test_equal_captions_of_few_pictures_are_named() -> None:
    twins = {"x.png": "an old owl flies over the red mill", "y.png": "An old owl flies over the red mill."}
    findings = found(survey_of(PROSE | twins))
    assert files(findings["equal"]) == [("x.png", "y.png")]
    survey = survey_of(PROSE | twins)
    for picture in survey.pictures[-2:]:
        picture.sha256 = "same"
    assert "equal" not in found(survey)


def test_short_or_many_equal_captions_are_counted_only() -> None:
    short = {f"{i}.png": f"sks {('dog', 'cat', 'owl')[i % 3]}" for i in range(12)}
    findings = found(survey_of(short))
    assert (findings["repeated"].count, findings["repeated"].params["groups"]) == (12, 3)
    assert "equal" not in findings
    many = {f"x{i}.png": "an old owl flies over the red mill" for i in range(10)}
    findings = found(survey_of(PROSE | many))
    assert (findings["repeated"].count, "equal" in findings) == (10, False)


def test_near_twins_are_counted() -> None:
    long = "an old man with a long white beard sits before his red house and reads today's paper while {} sleeps by him"
    texts = {"x.png": long.format("one cat"), "y.png": long.format("one dog"), "z.png": long.format("one grey dog")}
    tags = {f"t{name}": text for name, text in TAGS.items()}
    assert found(survey_of(PROSE | tags | texts))["nearly_equal"].count == 3
    assert "nearly_equal" not in found(survey_of(PROSE))


def test_a_caption_in_another_language_or_script_is_named() -> None:
    odd = {"x.png": "una casa con la puerta en el campo y los perros", "y.png": "一只灰色的猫坐在旧桥上"}
    assert files(found(survey_of(PROSE | odd))["other_language"]) == [("x.png",), ("y.png",)]
    chinese = {f"{i}.png": f"abcx，{text}" for i, text in enumerate(CHINESE)}
    chinese |= {"x.png": "abcx, an old man playing chess", "y.png": "abcx"}
    assert files(found(survey_of(chinese))["other_language"]) == [("x.png",)]
    half = PROSE | {f"c{i}.png": text for i, text in enumerate(CHINESE)}
    findings = found(survey_of(half))
    assert (list(findings["languages_mixed"].examples), "other_language" in findings) == (
        ["English (10)", "Chinese (10)"],
        False,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat is sitting on a wall", "English"),
        ("die Katze sitzt auf der Mauer und schläft", "German"),
        ("le chat est sur le mur avec une souris", "French"),
        ("猫が窓のそばで寝ている", "Japanese"),
        ("고양이가 창가에 앉아 있다", "Korean"),
        ("кошка сидит на стене", "Cyrillic"),
        ("cat, wall, window", "Latin"),
        ("sks", ""),
    ],
)
def test_language(text: str, expected: str) -> None:
    assert languages.language(text) == expected


def test_habits_are_counted_and_name_nobody() -> None:
    findings = found(survey_of(PROSE | {f"t{i}.png": text for i, text in enumerate(TAGS.values())}))
    assert findings["forms_mixed"].params == {"tags": 10, "prose": 10}
    template = {name: f"a photo of {text}" for name, text in PROSE.items()}
    assert list(found(survey_of(template))["template"].examples) == ["a photo of"]
    odd = PROSE | {"x.png": "cat, , (dog:1.2), cat, long_hair \\(x\\),", "y.png": "owl, mouse,"}
    findings = found(survey_of(odd))
    assert {name: findings[name].count for name in ("markup", "commas", "doubled")} == {
        "markup": 1,
        "commas": 2,
        "doubled": 1,
    }
    assert list(findings["doubled"].examples) == ["cat"]
    assert {finding.severity for finding in findings.values()} == {Severity.GOOD}
    assert not any(files(finding) for finding in findings.values())


def test_a_trigger_with_an_underscore_is_no_leftover() -> None:
    assert "markup" not in found(survey_of({name: f"my_char, {text}" for name, text in PROSE.items()}))
