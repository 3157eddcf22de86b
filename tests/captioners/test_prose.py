"""Sentences of models, made fit for captions."""

from __future__ import annotations

import pytest

from lora_scripts.captioners._prose import clean


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("The image shows two cats.", "Two cats."),
        ("Sure! Here is a caption: a red car.", "A red car."),
        ("In this image, there is a man in a coat.", "A man in a coat."),
        ("This is a picture of a cat.", "A cat."),
        ("A dog holding what appears to be a cup.", "A dog holding a cup."),
        ("He appears to be tired; they seem to be friends.", "He is tired; they are friends."),
        ("It is most likely a cat.", "It is a cat."),
        ("It is likely a cat, possibly asleep.", "It is a cat, asleep."),
        ("**A red car** on\n\na road.", "A red car on a road."),
        ("- red hat\n- blue coat", "Red hat, blue coat"),
        ("It holds:\n* a cup.\n* a hat", "It holds: a cup. a hat"),
        ("<think>What is it?</think>\nA hat.", "A hat."),
        # Words that only look like manners.
        ("The pictures show the image of a saint.", "The pictures show the image of a saint."),
        (
            "A glass that is likely to fall, more likely than not.",
            "A glass that is likely to fall, more likely than not.",
        ),
        ("A 2 * 3 * 4 grid, snake_case and __init__.", "A 2 * 3 * 4 grid, snake_case and __init__."),
        ("一只猫坐在窗台上。", "一只猫坐在窗台上。"),
    ],
)
def test_manners_go_and_words_stay(said, kept):
    label = clean(said)
    assert label.text == kept and not label.doubts
    assert clean(kept).text == kept


@pytest.mark.parametrize(
    ("said", "kept", "codes"),
    [
        ("A red square. It stands on a wh", "A red square.", ["captioner.cut_off"]),
        ("Red hat, blue coat, gre", "Red hat, blue coat", ["captioner.cut_off"]),
        ("一只猫。它坐在", "一只猫。", ["captioner.cut_off"]),
        ("A red squ", "A red squ", ["captioner.cut_off"]),
        # It ended just where the room did.
        ("A red square. It stands.", "A red square. It stands.", []),
        ("<think>The user wants a", "", ["captioner.cut_off", "captioner.silent"]),
    ],
)
def test_what_was_begun_and_not_ended_goes(said, kept, codes):
    label = clean(said, whole=False)
    assert label.text == kept and [note.code for note in label.doubts] == codes


@pytest.mark.parametrize("said", ["", "  \n", '""', "<think>x</think>"])
def test_silence_is_a_doubt(said):
    assert [note.code for note in clean(said).doubts] == ["captioner.silent"]
