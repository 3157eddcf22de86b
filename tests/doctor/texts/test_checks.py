"""Similar rows, labels, lengths, forms and languages, one at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.texts import classifier, duplicates, forms, label_errors, labels, lengths, reading, similar
from lora_scripts.doctor.texts.text import Text
from tests import tiny_text
from tests.doctor.texts.planted import clean_rows


def texts_of(rows: Sequence[tuple[str, str, str]]) -> list[Text]:
    """Return texts of (question, answer, label)."""
    return [
        Text(f"a:{i}", "a", asked, (answer,) if answer else (), label=label)
        for i, (asked, answer, label) in enumerate(rows, 1)
    ]


def clean(count: int) -> list[Text]:
    return texts_of([(row["message"], "", row["label"]) for row in clean_rows(count)])


def by_name(findings: Sequence[Finding]) -> dict[str, Finding]:
    found = {finding.name: finding for finding in findings}
    for finding in findings:
        assert all(finding.sentence(part) for part in ("what", "why", "fix"))
    return found


def files(finding: Finding) -> list[tuple[str, ...]]:
    return [item.files for item in finding.items]


def test_minhash_finds_what_the_exact_index_finds() -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=30)) for _ in range(150)]
    for place in range(0, 150, 3):
        near = texts[place].split()
        for _ in range(draw.randrange(4)):
            near[draw.randrange(30)] = draw.choice(words)
        texts.append(" ".join(near))
    index = similar.Index(texts)
    exact = {(a, b) for a in range(200) for b in range(a + 1, 200) if index.alike(a, b) >= similar.NEARLY}
    found = {(a, b) for a, b, _ in index.pairs()}
    assert len(exact) >= 30
    assert found <= exact
    assert len(found) >= 0.95 * len(exact)


def test_one_instruction_before_every_question_makes_no_duplicates() -> None:
    head = "Read the message of the customer below with great care and answer it kindly and in short: "
    rows = [Text(text.name, "a", head + text.asked, ()) for text in clean(120)]
    assert duplicates.find(rows) == []


def test_chinese_is_compared_by_characters() -> None:
    rows = [
        "我上周买的电饭锅一插电就跳闸，麻烦尽快安排换一台新的给我，谢谢",
        "我上周买的电饭锅一插电就跳闸，麻烦尽快安排换一台新的给我",
        "快递放在驿站三天了也没有人通知我去取，里面是给孩子的生日礼物",
    ]
    (finding,) = duplicates.find(texts_of([(row, "", "") for row in rows]))
    assert (finding.name, files(finding)) == ("nearly_equal", [("a:1", "a:2")])


def test_contradictions() -> None:
    rows = [("My kettle leaks!", "", "fault"), ("my kettle leaks", "", "praise"), ("Where is it?", "", "delivery")]
    long = "the courier left the parcel with the garden hose beside the blue door of the bakery last Monday"
    rows += [(long, "", "delivery"), (long.replace("last Monday", "last Friday"), "", "billing")]
    found = by_name(duplicates.find(texts_of(rows)))
    assert {name: (one.severity, files(one)) for name, one in found.items()} == {
        "contradiction": (Severity.MUST, [("a:1", "a:2")]),
        "near_contradiction": (Severity.SHOULD, [("a:4", "a:5")]),
    }
    liked = [replace(text, liked=i == 0) for i, text in enumerate(texts_of([("Who?", "Me", ""), ("Who?", "Me", "")]))]
    assert files(by_name(duplicates.find(liked))["contradiction"]) == [("a:1", "a:2")]


def test_near_leak() -> None:
    texts = clean(60)
    held = [replace(texts[7], name="b:1", asked=texts[7].asked.rstrip(".") + " again, please")]
    (finding,) = duplicates.find(texts, held)
    assert (finding.name, files(finding)) == ("near_leak", [("a:8", "b:1")])


def test_labels_by_number_and_spelling() -> None:
    rows = [
        ("x", "", label)
        for label in ["refund"] * 40 + ["Refund "] * 3 + ["delivery"] * 30 + ["delivrey"] + ["rare"] * 2
    ]
    found = by_name(labels.find(texts_of(rows)))
    assert len(found["label_spelling"].items) == 4
    assert found["label_spelling"].severity is Severity.MUST
    assert found["label_rare"].examples == ["rare (2)"]
    assert labels.find(texts_of([("x", "y", "")])) == []


def test_answers_that_are_labels_are_taken_as_such() -> None:
    rows = texts_of([(f"question {i}", "yes" if i % 2 else "no", "") for i in range(40)])
    assert {text.label for text in reading.with_labels(rows)} == {"yes", "no"}
    rows = texts_of([(f"question {i}", f"answer {i}", "") for i in range(40)])
    assert {text.label for text in reading.with_labels(rows)} == {""}


def test_thirty_wrong_labels_of_two_thousand_are_found() -> None:
    texts, draw = clean(2000), random.Random(3)
    known = sorted({text.label for text in texts})
    wrong = draw.sample(range(2000), 30)
    for place in wrong:
        other = draw.choice([label for label in known if label != texts[place].label])
        texts[place] = replace(texts[place], label=other)
    (finding,) = label_errors.find(texts)
    assert (finding.name, finding.severity) == ("label_doubtful", Severity.SHOULD)
    named = {file for item in finding.items[: label_errors.MOST_SHOWN] for file in item.files}
    assert len(named & {texts[place].name for place in wrong}) >= 24
    assert len(named) <= 36


def test_real_messages_with_wrong_labels_are_ranked_first(root: Path) -> None:
    """Eight kinds that words alone hardly tell apart: by chance fewer than two of thirty would be among the first."""
    texts = reading.read(root / "examples/customer_feedback/train.en.jsonl").texts
    assert len(texts) == 736
    draw, known = random.Random(6), sorted({text.label for text in texts})
    wrong = draw.sample(range(736), 30)
    for place in wrong:
        texts[place] = replace(texts[place], label=draw.choice([each for each in known if each != texts[place].label]))
    (finding,) = label_errors.find(texts)
    assert (finding.name, finding.severity, len(finding.items)) == ("label_review", Severity.GOOD, 60)
    named = [file for item in finding.items for file in item.files]
    assert finding.count > 60
    assert len({texts[place].name for place in wrong} & {*named[:30]}) >= 6


def test_labels_that_mean_nothing_are_not_doubted_aloud() -> None:
    draw = random.Random(4)
    texts = [replace(text, label=draw.choice("abc")) for text in clean(300)]
    assert all(finding.severity is Severity.GOOD for finding in label_errors.find(texts))


def test_folds_share_every_label_and_stay_the_same() -> None:
    given = np.array([0] * 43 + [1] * 12 + [2] * 5)
    folds = classifier.split(given)
    assert (folds == classifier.split(given)).all()
    for label, fewest in ((0, 8), (1, 2), (2, 1)):
        assert np.bincount(folds[given == label], minlength=5).min() >= fewest
    assert np.bincount(folds).tolist() == [12] * 5


def test_the_fit_has_no_slope_left() -> None:
    texts = clean(200)
    names = sorted({text.label for text in texts})
    given = np.array([names.index(text.label) for text in texts])
    rows = classifier.features([text.asked for text in texts])
    weights, bias = classifier.fit(rows, given, len(names), int(rows.columns.max()) + 1)
    dense = np.zeros((len(rows), len(weights)), np.float32)
    for i in range(len(rows)):
        part = slice(rows.starts[i], rows.starts[i + 1])
        dense[i, rows.columns[part]] = rows.values[part]
    shares = classifier.softmax(dense @ weights + bias)
    assert (shares.argmax(axis=1) == given).all()
    assert np.allclose(np.linalg.norm(dense, axis=1), 1, atol=1e-5)


def test_lengths_in_the_tokens_of_a_base(tmp_path: Path) -> None:
    texts = texts_of([("a red fox", "in the snow", ""), ("word " * 90, "end", "")])
    base = tiny_text.write_base(tmp_path / "base")
    exact = by_name(lengths.find(Settings(Path("."), base=base, max_tokens=50), texts))
    assert files(exact["too_long"]) == [("a:2",)]
    own = tiny_text.tokenizer()
    counts = [len(own(text.whole, add_special_tokens=False)["input_ids"]) for text in texts]
    assert (exact["lengths"].params["least"], exact["lengths"].params["most"]) == (min(counts), max(counts))


def test_lengths_without_a_base_are_guessed() -> None:
    texts = texts_of([("a red fox", "in the snow", ""), ("word " * 90, "end", "")])
    found = by_name(lengths.find(Settings(Path("."), max_tokens=50), texts))
    assert files(found["about_too_long"]) == [("a:2",)]
    assert found["about_lengths"].params["limit"] == 50


def test_short_answers_among_long_ones() -> None:
    rows = [(f"question {i}", "one long answer of many words " * 6, "") for i in range(30)] + [("question", "Ok", "")]
    found = by_name(lengths.find(Settings(Path(".")), texts_of(rows)))
    assert files(found["short_answer"]) == [("a:31",)]
    assert "short_answer" not in by_name(lengths.find(Settings(Path(".")), texts_of([("q", "Ok", "")] * 30)))


def test_leftovers_of_templates() -> None:
    rows = [
        ("Who are you?", "As an AI language model, I have no name.", ""),
        ("Write to Tom", "Sure! Here is a short letter to Tom.", ""),
        ("你是谁", "作为一个人工智能语言模型，我没有名字。", ""),
        ("Thank me", "Dear [Your Name], thank you.", ""),
        ("Greet", "Hello {customer_name}, welcome.", ""),
        ("Greet in Python", "```\nprint(f'Hello {name}')\n```", ""),
        ("What is a set?", "A set has no order, and sure enough here is one: {1, 2}.", ""),
        ("Where is the nearest lake to our town?", "Where is the nearest lake to our town? In the west.", ""),
    ]
    found = by_name(forms.find(texts_of(rows)))
    assert {name: [file for (file,) in files(one)] for name, one in found.items()} == {
        "assistant_phrase": ["a:1", "a:2", "a:3"],
        "placeholder": ["a:4", "a:5"],
        "copied": ["a:8"],
    }


def test_languages_and_signatures() -> None:
    rows = [(text.asked, f"We look into it, number {i}. Mara, Support", "") for i, text in enumerate(clean(30))]
    rows.append(("这个电饭锅的说明书在哪里可以下载", "您好，官网可以下载。", ""))
    found = by_name(forms.find(texts_of(rows)))
    assert files(found["other_language"]) == [("a:31",)]
    assert found["repeated_line"].examples == ["Mara, Support (30/31)"]
