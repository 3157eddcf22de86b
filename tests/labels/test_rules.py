"""What becomes of a model's words: policies, a person's options, limits; and who took what out."""

from __future__ import annotations

import pytest

from lora_scripts.contracts import Label, Tag
from lora_scripts.errors import ConfigError
from lora_scripts.labels import policies, tokens
from lora_scripts.labels.options import KINDS, LabelOptions, captioner_config, flag, read
from lora_scripts.labels.rules import Rules, counted


def rules(**values: object) -> Rules:
    options = read({"input": ".", **values})
    policy = policies.load(options.kind, options.policy)
    return Rules(options, policy, tokens.limit(options), tokens.counter(options), "someone")


def tags(*texts: str, group: str = "general") -> Label:
    return Label("", tuple(Tag(text, 0.9, group) for text in texts))


PERSON = {"kind": "person", "class_word": "woman", "trigger": "ohwx"}
THING = {"kind": "thing", "class_word": "backpack", "trigger": "zzq"}
STYLE = {"kind": "style"}


@pytest.mark.parametrize(
    ("options", "said", "written"),
    [
        (PERSON, "A woman with long brown hair and blue eyes sitting on a bench.", "ohwx woman sitting on a bench."),
        (PERSON, "a young woman with blue eyes and a red dress", "ohwx woman with a red dress"),
        (PERSON, "a woman with curly hair, wearing a hat", "ohwx woman, wearing a hat"),
        (PERSON, "a photo of a woman with her eyes closed", "ohwx woman with her eyes closed"),
        (PERSON, "a woman, her long hair blowing in the wind, on a beach", "ohwx woman, on a beach"),
        (PERSON, "two people in the rain", "ohwx woman, two people in the rain"),
        (THING, "a red backpack sitting on a table", "zzq backpack sitting on a table"),
        (THING, "the man with the small blue backpack", "the man with zzq backpack"),
        (STYLE, "a black and white drawing of a cat", "a cat"),
        (STYLE, "An illustration of a house in the style of somebody", "a house"),
        (STYLE, "The image shows a boat on a lake. It is an oil painting.", "a boat on a lake."),
        (STYLE, "a dog, high contrast, on a white background", "a dog, on a white background"),
        ({}, "a painting of a woman with long hair", "a painting of a woman with long hair"),
    ],
)
def test_sentences(options, said, written):
    assert rules(**options).write(Label(said)).text == written


def test_tags_of_a_person():
    words = "long_hair blue_eyes hair_ornament closed_eyes ^_^ hair_between_eyes animal_ears full_body woman".split()
    written = rules(**PERSON).write(tags(*words))
    assert written.text == "ohwx woman, hair ornament, closed eyes, ^_^, full body"
    assert {one.text for one in written.removed if one.rule == "--kind person"} == {
        "long hair",
        "blue eyes",
        "hair between eyes",
        "animal ears",
    }
    assert [one.rule for one in written.removed if one.text == "woman"] == ["repeated"]


def test_groups_that_a_kind_leaves_out():
    label = Label("", tuple(Tag(group, 0.9, group) for group in ("medium", "subject", "setting", "pose")))
    assert rules(**STYLE).write(label).text == "subject, setting, pose"
    assert rules(**THING).write(label).text == "zzq backpack, medium, setting, pose"


def test_each_rule_says_that_it_was_the_one():
    label = Label("", (Tag("a", 0.9), Tag("b", 0.1), Tag("c", 0.9), Tag("d", 0.9), Tag("a", 0.9), Tag("e", 0.9)))
    written = rules(threshold="0.5", exclude=["C"], replace=["d=x"], max_tags="2").write(label)
    assert written.text == "a, x"
    assert [(one.text, one.rule) for one in written.removed] == [
        ("b", "--threshold"),
        ("c", "--exclude"),
        ("d", "--replace"),
        ("a", "repeated"),
        ("e", "--max-tags"),
    ]


def test_faces_may_be_replaced_and_underscores_kept():
    assert rules(replace=["=_==closed eyes", "hat="]).write(tags("=_=", "hat", "o_o")).text == "closed eyes, o_o"
    assert rules(underscores="keep").write(tags("long_hair")).text == "long_hair"


@pytest.mark.parametrize("how", ["append", "prepend"])
@pytest.mark.parametrize("standing", ["A cat runs.", "sky, cat", "天空，猫", "ohwx, sky,"])
def test_adding_twice_adds_nothing(how, standing):
    adding = rules(existing=how, trigger="ohwx", prefix="photo of", suffix="end")
    once = adding.write(tags("cat", "dog"), standing=standing).text
    assert once.count("dog") == 1 and standing.strip(" ,") in once and once.count("ohwx") == 1
    assert adding.write(tags("cat", "dog"), standing=once).text == once


def test_what_is_too_long_goes_from_the_end_and_never_what_a_person_gave():
    written = rules(max_tokens="6", trigger="ohwx").write(tags("red", "green", "blue"))
    assert written.text == "ohwx, red, green" and written.tokens <= 6
    assert [one.text for one in written.removed] == ["blue"]
    long = rules(max_tokens="3", prefix="one two three four").write(tags("red"))
    assert long.text == "one two three four"
    assert "label.doubt_long" in [note.code for note in long.doubts]
    words = rules(max_tokens="4").write(Label("one two three four five six"))
    assert words.text == "one two three four" and words.removed[0].text == "five six"


def test_what_most_captions_say_belongs_to_the_style():
    style = rules(**STYLE)
    labels = [Label("", (Tag("warm", 0.9, "palette"), Tag(f"thing {i}", 0.9, "subject"))) for i in range(10)]
    labels[0] = Label("", (Tag("cold", 0.9, "palette"),))
    assert counted(style, labels) == {"warm"}
    written = style.write(labels[1], frequent=counted(style, labels))
    assert written.text == "thing 1" and written.removed[0].rule == "--kind style, in > 60%"
    assert counted(rules(**PERSON), labels) == frozenset()


def test_nothing_said_and_nothing_left_are_doubts():
    assert [note.code for note in rules().write(Label()).doubts] == ["label.doubt_nothing"]
    assert [note.code for note in rules(exclude=["a"]).write(tags("a")).doubts] == ["label.doubt_empty"]


def test_another_rule_is_another_key():
    values = [{}, {"trigger": "a"}, {"exclude": ["a"]}, {"max_tags": "3"}, {"max_tokens": "9"}, STYLE, {"base": None}]
    keys = [rules(**value).key for value in values]
    assert len(set(keys)) == 6 and keys[0] == keys[-1]
    assert rules(batch_size="3", existing="append", dry_run="1").key == keys[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_may_be_copied_and_changed(kind, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(policies.text(kind), encoding="utf-8")
    assert policies.load(kind, mine) == policies.load(kind)
    mine.write_text('words = ["table"]\n')
    assert policies.load(kind, mine).words == ("table",)
    for wrong in ("words = 3", "colours = []", "words = [", "frequent = 7"):
        mine.write_text(wrong)
        with pytest.raises(ConfigError, match=r"mine\.toml"):
            policies.load(kind, mine)


@pytest.mark.parametrize(("said", "kind"), [("角色", "person"), ("Object", "thing"), ("画风", "style"), ("", "")])
def test_kinds_have_plain_names(said, kind):
    assert read({"input": ".", "kind": said, "class_word": "x"}).kind == kind


def test_every_problem_of_the_options_is_told_with_its_flag():
    with pytest.raises(ConfigError) as caught:
        read({"threshold": "7", "batch_size": "x", "kind": "dog", "replace": ["=b"], "separator": "\n"})
    flags = ("--input", "--threshold", "--batch-size", "--kind", "--replace", "--separator")
    assert len(caught.value.problems) == 6 and all(name in str(caught.value) for name in flags)


def test_every_flag_is_documented(root):
    page = (root / "docs/labels.md").read_text(encoding="utf-8")
    flags = [flag(name) for name in LabelOptions.model_fields]
    assert len(flags) == 24
    assert [name for name in flags if name not in page] == []


def test_a_captioner_s_own_options_are_read_as_yaml(toy):
    from lora_scripts import registry

    config = registry.load("captioners", "toy").Config
    read_back = captioner_config(config, ("seconds=1.5", "judges=true", "voice=007 a"))
    assert (read_back.seconds, read_back.judges, read_back.voice) == (1.5, True, "007 a")
    with pytest.raises(ConfigError, match="seconds"):
        captioner_config(config, ("second=1",))
