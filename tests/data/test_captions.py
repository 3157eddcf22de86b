"""What a visit is dealt."""

from __future__ import annotations

import random

import pytest

from lora_scripts.data.captions import CaptionRules, draw, plain, tags_of, with_trigger

CAPTIONS = ("one, two, three, four, five", "uno, due, tre, quattro, cinque", "a hand's  words , kept ")


def deal(seed: int, *, captions=CAPTIONS, flip: bool = False, weights=(), **rules) -> tuple[str, bool]:
    return draw(captions, CaptionRules(**rules), random.Random(seed), flip, weights)


def dealt(caption: str, count: int = 400, **rules) -> list[str]:
    return [deal(seed, captions=(caption,), **rules)[0] for seed in range(count)]


def test_without_rules_the_words_are_the_hands_own():
    seen = {deal(seed) for seed in range(100)}
    assert seen == {(caption, False) for caption in CAPTIONS}


def test_the_same_visit_is_dealt_the_same():
    rules = {"shuffle": True, "dropout": 0.3, "trigger": "sks", "keep_tokens": 1}
    first = [deal(seed, flip=True, **rules) for seed in range(200)]
    assert first == [deal(seed, flip=True, **rules) for seed in range(200)]
    assert len(set(first)) > 50


def test_one_rule_does_not_change_what_the_others_deal():
    for seed in range(200):
        plain, _ = deal(seed)
        flipped = deal(seed, flip=True)
        assert flipped[0] == plain
        assert deal(seed, flip=True, shuffle=True, trigger="sks")[1] == flipped[1]
        shuffled, _ = deal(seed, shuffle=True)
        assert sorted(part.strip() for part in shuffled.split(",")) == sorted(p.strip() for p in plain.split(","))
        assert deal(seed, shuffle=True, dropout=0.5)[0] in ("", shuffled)
        assert deal(seed, shuffle=True, flip=True)[0] == shuffled
        dropped = deal(seed, dropout=0.5)[0] == ""
        assert (deal(seed, dropout=0.5, shuffle=True, trigger="sks", flip=True)[0] == "") == dropped


def test_the_generator_moves_on_by_the_same_amount():
    after = set()
    tags = {"tag_dropout": 0.5, "keep_tags": ("two",), "tag_chances": {"three": 0.1}, "keep_separator": ","}
    words = {"prefix": "a", "suffix": "b", "trigger": "x"}
    for rules in ({}, {"shuffle": True}, {"dropout": 1.0}, words, {"shuffle": True, "keep_tokens": 2}, tags):
        for flip in (False, True):
            generator = random.Random(1)
            draw(CAPTIONS, CaptionRules(**rules), generator, flip)
            after.add(generator.random())
    assert len(after) == 1


def test_shares_are_as_asked():
    deals = [deal(seed, captions=("x",), flip=True, dropout=0.25) for seed in range(4000)]
    assert sum(caption == "" for caption, _ in deals) == pytest.approx(1000, abs=90)
    assert sum(flipped for _, flipped in deals) == pytest.approx(2000, abs=130)
    assert deal(3, dropout=1.0)[0] == "" and deal(3, dropout=1.0, trigger="sks")[0] == ""
    picked = [deal(seed)[0] for seed in range(3000)]
    assert all(picked.count(caption) == pytest.approx(1000, abs=120) for caption in CAPTIONS)


def test_kept_parts_stay_in_front():
    seen = {deal(seed, captions=CAPTIONS[:1], shuffle=True, keep_tokens=2)[0] for seed in range(100)}
    assert len(seen) == 6 and all(caption.startswith("one, two, ") for caption in seen)
    everything = {deal(seed, captions=CAPTIONS[:1], shuffle=True)[0] for seed in range(2000)}
    assert len(everything) == 120
    assert {deal(seed, captions=("a, b",), shuffle=True, keep_tokens=1)[0] for seed in range(20)} == {"a, b"}


def test_the_trigger_stays_in_front_of_shuffled_parts():
    seen = {deal(seed, captions=("a, b, c",), shuffle=True, trigger="sks cat")[0] for seed in range(100)}
    assert len(seen) == 6 and all(caption.startswith("sks cat, ") for caption in seen)


@pytest.mark.parametrize(
    ("caption", "trigger", "wanted"),
    [
        ("a cat", "sks", "sks, a cat"),
        ("", "sks", "sks"),
        ("a cat", "", "a cat"),
        ("photo of sks cat", "sks", "photo of sks cat"),
        ("photo of SKS", "sks", "photo of SKS"),
        ("people with masks", "sks", "sks, people with masks"),
        ("sks2 and _sks", "sks", "sks, sks2 and _sks"),
        ("c++ code", "c++", "c++ code"),
        ("一只猫娘坐着", "猫娘", "一只猫娘坐着"),
        ("一只狗", "猫娘", "猫娘, 一只狗"),
    ],
)
def test_the_trigger_is_put_where_it_is_not(caption: str, trigger: str, wanted: str):
    assert with_trigger(caption, trigger) == wanted


def test_chinese_commas_part_too():
    seen = {deal(seed, captions=("红，绿，蓝",), shuffle=True)[0] for seed in range(100)}
    assert len(seen) == 6 and "红, 绿, 蓝" in seen


def test_captions_are_drawn_by_their_weights():
    picked = [deal(seed, weights=(1, 6, 3.0))[0] for seed in range(3000)]
    assert [picked.count(caption) for caption in CAPTIONS] == pytest.approx([300, 1800, 900], abs=100)
    even = [deal(seed, weights=(2, 2, 2))[0] for seed in range(300)]
    assert even == [deal(seed)[0] for seed in range(300)]


def test_tags_are_dropped_but_the_kept_ones():
    seen = dealt("One, two, three", 2000, tag_dropout=0.25, keep_tags=(" one",))
    assert {*seen} == {"One", "One, two", "One, three", "One, two, three"}
    assert sum("two" in caption for caption in seen) == pytest.approx(1500, abs=90)
    assert {*dealt("one, two, three", tag_dropout=1.0, keep_tokens=2)} == {"one, two"}
    assert {*dealt("one, two", tag_dropout=1.0)} == {""}
    assert {*dealt("one, two", tag_dropout=1.0, trigger="one")} == {"one"}


def test_tags_with_a_chance_of_their_own():
    seen = dealt("one, two, three", 2000, tag_chances={"TWO": 0.2, "three": 1.0})
    assert {*seen} == {"one, three", "one, two, three"}
    assert sum("two" in caption for caption in seen) == pytest.approx(400, abs=80)
    both = dealt("one, two, three", tag_chances={"two": 1.0, "three": 0.0}, tag_dropout=1.0)
    assert {*both} == {"two"}


def test_a_tag_is_dropped_whatever_else_is_asked():
    """Which tags a visit misses does not depend on shuffling, keeping or mirroring."""
    for seed in range(100):
        captions = ("a, b, c, d",)
        plainly = deal(seed, captions=captions, tag_dropout=0.5)[0]
        shuffled = deal(seed, captions=captions, tag_dropout=0.5, shuffle=True, flip=True)[0]
        assert sorted(shuffled.split(", ")) == sorted(plainly.split(", "))
        chance = deal(seed, captions=captions, tag_dropout=0.5, tag_chances={"b": 0.5})[0]
        assert chance == plainly
        kept = deal(seed, captions=captions, tag_dropout=0.5, keep_tags=("a",))[0]
        assert kept.removeprefix("a").lstrip(", ") == plainly.removeprefix("a").lstrip(", ")
        order = [tag for tag in deal(seed, captions=captions, shuffle=True)[0].split(", ") if tag in shuffled]
        assert ", ".join(order) == shuffled


def test_what_the_separator_keeps():
    rules = {"shuffle": True, "keep_separator": "|||", "tag_dropout": 0.5}
    seen = {*dealt("a, b ||| c, d", **rules)}
    tails = {"", ", c", ", d", ", c, d", ", d, c"}
    assert seen == {f"a, b{tail}" for tail in tails}
    assert {*dealt("a ||| b, c ||| d, e", **rules)} == {f"a{t}, d, e" for t in ("", ", b", ", c", ", b, c", ", c, b")}
    assert {*dealt("||| a ||| b", keep_separator="|||", tag_dropout=1.0)} == {"b"}


def test_the_separator_decides_where_it_stands():
    rules = {"shuffle": True, "keep_separator": "|||", "keep_tokens": 1}
    assert {*dealt("a, b ||| c, d", **rules)} == {"a, b, c, d", "a, b, d, c"}
    assert {*dealt("a, b, c", **rules)} == {"a, b, c", "a, c, b"}


def test_the_separator_is_taken_out_without_other_rules():
    assert {*dealt("a cat||| on a  mat", keep_separator="|||")} == {"a cat, on a  mat"}
    assert {*dealt("a  cat , ", keep_separator="|||")} == {"a  cat , "}


def test_words_around():
    assert {*dealt("a cat", prefix=" photo of", suffix="at night ")} == {"photo of a cat at night"}
    assert {*dealt("", prefix="photo", suffix="at night")} == {"photo at night"}
    assert {*dealt("a cat", prefix="photo of", trigger="sks")} == {"sks, photo of a cat"}
    assert {*dealt("a cat", prefix="photo of sks", trigger="sks")} == {"photo of sks a cat"}
    assert {*dealt("a cat", prefix="photo of", dropout=1.0)} == {""}
    shuffled = {*dealt("a, b", prefix="x, y,", suffix="z", shuffle=True)}
    assert shuffled == {"x, y, a, b z", "x, y, b, a z"}


def test_what_every_visit_sees():
    rules = CaptionRules("sks", True, 1, "|||", ("a",), 0.5, {"b": 0.1}, 0.5, "photo,", "night")
    assert plain("a, b ||| c", rules) == "sks, photo, a, b, c night"
    assert plain("a,b", CaptionRules()) == "a,b"
    assert tags_of("A, b ||| c, , d", rules) == ["A", "b", "c", "d"]
