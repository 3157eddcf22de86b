"""What a visit is dealt."""

from __future__ import annotations

import random

import pytest

from lora_scripts.data.captions import draw, with_trigger
from lora_scripts.data.record import CaptionRules

CAPTIONS = ("one, two, three, four, five", "uno, due, tre, quattro, cinque", "a hand's  words , kept ")


def deal(seed: int, *, captions=CAPTIONS, flip: bool = False, **rules) -> tuple[str, bool]:
    return draw(captions, CaptionRules(**rules), random.Random(seed), flip)


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
    for rules in ({}, {"shuffle": True}, {"dropout": 1.0}, {"trigger": "x"}, {"shuffle": True, "keep_tokens": 2}):
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
