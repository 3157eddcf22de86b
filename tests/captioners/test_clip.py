"""CLIP with banks of phrases, and the embedded labeller: on tiny random models and on the one that ships."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageDraw

from lora_scripts.captioners import _banks, _chains, _pixels, _towers, clip
from lora_scripts.contracts import Tag
from lora_scripts.errors import BaseModelError, ConfigError, MachineError
from tests.tiny_clip import NAMES, build_clip, build_towers


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> Path:
    return build_towers(tmp_path_factory.mktemp("towers") / "tiny")


def pictures(count: int = 7) -> list[Image.Image]:
    made = []
    for i in range(count):
        picture = Image.new("RGB", (40 + 9 * i, 50), (40 * i % 256, 255 - 30 * i, 90))
        ImageDraw.Draw(picture).ellipse((5, 5, 30, 30), fill=(255 - 30 * i, 20 * i, 200))
        made.append(picture)
    return made


def built(model: Path | None, **options):
    return clip.build(clip.Config(**options), None if model is None else str(model), "cpu")


def words(labels) -> list[list[str]]:
    return [[tag.text for tag in label.tags] for label in labels]


def test_the_embedding_equals_the_model_s_own(model):
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    reference = CLIPModel.from_pretrained(model).eval()
    size = {"shortest_edge": 32}
    process = CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32})
    shown = process(pictures(), return_tensors="pt").pixel_values
    tokens = CLIPTokenizer.from_pretrained(model)(["a red square", "a blue disc"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        seen = torch.nn.functional.normalize(reference.get_image_features(shown).pooler_output, dim=-1).numpy()
        read = torch.nn.functional.normalize(reference.get_text_features(**tokens).pooler_output, dim=-1).numpy()
    ours = _towers.load(str(model), "cpu")
    assert abs(ours.embed_texts(["a red square", "a blue disc"]) - read).max() < 1e-5
    assert abs(ours.embed_pictures(pictures()) - seen).max() < 1e-5
    assert ours.scale == pytest.approx(float(reference.logit_scale.detach().exp()))


def test_labels_do_not_depend_on_the_batch_and_keep_within_their_groups(model):
    captioner = built(model, share=0.0)
    whole = captioner.caption(pictures())
    single = [captioner.caption([picture])[0] for picture in pictures()]
    assert words(whole) == words(single) and all(words(whole))
    banks = {bank.bank.group: bank.bank for bank in captioner.banks}
    for label in whole:
        groups = [tag.group for tag in label.tags]
        assert all(groups.count(group) <= banks[group].at_most for group in groups)
        order = [banks[group].order for group in groups]
        assert order == sorted(order) and len(label.tags) <= 10
        assert all(tag.text in banks[tag.group].phrases and 0 <= tag.score <= 1 for tag in label.tags)


def test_a_larger_gain_says_less_and_the_identity_tells(model):
    little, much = built(model, share=0.0, gain=0.05), built(model, share=0.0, gain=0.0)
    assert sum(map(len, words(little.caption(pictures())))) < sum(map(len, words(much.caption(pictures()))))
    assert len({little.identity, much.identity, built(model).identity}) == 3
    assert built(model).identity == built(model, batch=3).identity


def test_the_greedy_growth_takes_what_comes_closest():
    """On vectors set by hand: two axes of the picture are covered by two phrases, a third adds nothing."""
    vectors = numpy.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0.42]], dtype=numpy.float32)
    offered = [(Tag(text, 0.5, "subject"), row) for text, row in zip(("x", "y", "z", "xy"), vectors, strict=True)]
    seen = numpy.array([0.8, 0.6, 0.0], dtype=numpy.float32)

    def grown(room: int, most: int, gain: float) -> list[str]:
        return [tag.text for tag in _chains.by_vectors(seen, offered, _chains.Limits({"subject": room}, most, gain))]

    assert grown(4, 9, 0.001) == ["x", "y"]
    assert grown(1, 9, 0.001) == grown(4, 1, 0.001) == grown(4, 9, 0.5) == ["x"] and grown(0, 9, 0.001) == []


def test_a_chain_takes_the_phrase_whose_joined_text_is_closest(model):
    """Against the same rule written out anew, one picture and one text at a time."""
    options = {"share": 0.0, "gain": 0.0005, "most": 4, "groups": ("count", "light", "mood")}
    captioner = built(model, chain=True, **options)
    ours = _towers.load(str(model), "cpu")
    banks = [bank for bank in captioner.banks]
    place = {bank.bank.group: i for i, bank in enumerate(banks)}
    whole = captioner.caption(pictures())
    assert words(whole) == words([captioner.caption([picture])[0] for picture in pictures()])
    for picture, label in zip(pictures(), whole, strict=True):
        seen = ours.embed_pictures([picture])[0]
        left = [tag for bank in banks for tag, _ in captioner._candidates(bank, seen)]
        vectors = {tag: vector for bank in banks for tag, vector in captioner._candidates(bank, seen)}
        taken: list[Tag] = []
        best = -1.0
        while len(taken) < 4:
            free = [tag for tag in left if tag not in taken and tag.group not in {one.group for one in taken}]
            means = {tag: sum((vectors[one] for one in taken), vectors[tag]) for tag in free}
            free.sort(key=lambda tag: -round(float(means[tag] @ seen / numpy.linalg.norm(means[tag])), 5))
            tried = free[: _chains.TRIED]
            joined = [sorted([*taken, tag], key=lambda one: place[one.group]) for tag in tried]
            close = [round(float(ours.embed_texts([", ".join(t.text for t in row)])[0] @ seen), 5) for row in joined]
            if not close or (taken and max(close) < best + 0.0005):
                break
            best = max(close)
            taken.append(tried[close.index(best)])
        assert [tag.text for tag in label.tags] == [t.text for t in sorted(taken, key=lambda t: place[t.group])]
    assert max(len(label.tags) for label in whole) >= 2
    assert words(whole) != words(built(model, **options).caption(pictures()))
    assert captioner.identity != built(model, **options).identity


def test_a_chain_begins_with_a_subject(model):
    for label in built(model, chain=True, share=0.0, most=1).caption(pictures(3)):
        assert [tag.group for tag in label.tags] == ["subject"]


def test_room_of_a_group_can_be_given(model):
    captioner = built(model, share=0.0, gain=0.0, at_most={"subject": 3, "mood": 0})
    groups = [tag.group for label in captioner.caption(pictures()) for tag in label.tags]
    banks = {bank.bank.group: bank.bank.at_most for bank in captioner.banks}
    assert banks["subject"] == 3 and banks["clothing"] == 3 and "mood" not in groups
    with pytest.raises(ConfigError, match="nonsense"):
        built(model, at_most={"nonsense": 1})


def test_a_contrast_phrase_that_wins_says_nothing_of_its_group(model, tmp_path):
    (tmp_path / "clothing.toml").write_text('replace = true\nphrases = ["a hat"]\ncontrast = ["a red square"]\n')
    captioner = built(model, phrases=(tmp_path,), groups=("clothing",), share=0.0)
    ours = _towers.load(str(model), "cpu")
    nearer = ours.embed_pictures(pictures()) @ ours.embed_texts(["a hat", "a red square"]).T
    said = [bool(label.tags) for label in captioner.caption(pictures())]
    assert said == [bool(row[0] > row[1]) for row in nearer]


def test_banks_are_whole_distinct_and_name_no_artist():
    banks = {bank.group: bank for bank in _banks.load()}
    assert len(banks) == 13 and sum(len(bank.phrases) for bank in banks.values()) > 700
    for group in ("medium", "subject", "count", "framing", "pose", "clothing", "setting", "light", "palette", "mood"):
        assert len(banks[group].phrases) >= 10, group
    every = [phrase for bank in banks.values() for phrase in bank.phrases]
    assert len(every) == len(set(every)) and not [
        phrase for phrase in every if " by " in phrase or "trending" in phrase
    ]
    assert all(template.count("{}") == 1 for bank in banks.values() for template in bank.templates)


def test_a_person_s_lists_join_or_replace(tmp_path):
    (tmp_path / "subject.txt").write_text("# mine\nmy cat Tom\n")
    (tmp_path / "weapons.toml").write_text('order = 5\nat_most = 2\nphrases = ["a halberd"]\n')
    (tmp_path / "mood.toml").write_text('replace = true\nphrases = ["grim"]\n')
    (tmp_path / "light.toml").write_text('at_most = 4\ntemplates = ["in {}"]\n')
    banks = {bank.group: bank for bank in _banks.load([tmp_path])}
    assert banks["subject"].phrases[0] == "my cat Tom" and "cat" in banks["subject"].phrases
    assert banks["mood"].phrases == ("grim",) and banks["weapons"].at_most == 2
    own = {bank.group: bank for bank in _banks.load()}
    assert banks["subject"].at_most == own["subject"].at_most and banks["subject"].order == own["subject"].order
    assert banks["light"] == dataclasses.replace(own["light"], at_most=4, templates=("in {}",))
    assert _banks.load([tmp_path])[0].group == "weapons"
    assert [bank.group for bank in _banks.load(groups=("setting", "light"))] == ["setting", "light"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "phrases = [", "cannot be read"),
        ("a.toml", 'phrases = ["x"]\nweight = 2', "weight"),
        ("a.toml", 'phrases = ["x"]\ntemplates = ["a picture"]', "{}"),
        ("a.toml", "phrases = []", "list of phrases"),
        ("a.toml", 'phrases = ["x", 3]', "list of phrases"),
        ("a.toml", 'phrases = ["x"]\norder = "first"', "order"),
        ("a.toml", 'phrases = ["x"]\nat_most = -1', "at_most"),
        ("a.toml", 'phrases = ["x"]\nat_most = true', "at_most"),
        ("a.toml", 'phrases = ["x"]\nreplace = "no"', "replace"),
        ("a.toml", "at_most = 2", "list of phrases"),
        ("mood.toml", "at_most = 2\nreplace = true", "list of phrases"),
        ("a.txt", "\n# nothing\n", "list of phrases"),
        ("a.md", "x", "no bank"),
    ],
)
def test_broken_banks_are_sentences(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        _banks.load([tmp_path / name])
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_phrases_are_encoded_once(model, cache_dir):
    ours = _towers.load(str(model), "cpu")
    banks = _banks.load(groups=("light", "mood"))
    first = _banks.embed(ours, banks)
    files = list((cache_dir / "lora-scripts/labels").iterdir())
    assert len(files) == 2
    asked = []
    spy = _towers.Towers(**{**vars(ours), "read": lambda texts: asked.append(texts) or ours.read(texts)})
    assert all((a.vectors == b.vectors).all() for a, b in zip(first, _banks.embed(spy, banks), strict=True))
    assert asked == []
    files[0].write_bytes(files[0].read_bytes()[:40])
    again = _banks.embed(spy, banks)
    assert len(asked) == 1 and all((a.vectors == b.vectors).all() for a, b in zip(first, again, strict=True))


def test_models_that_cannot_be_used_are_sentences(model, towers, tmp_path):
    def copied(source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, tmp_path / name))

    no_weights = copied(model, "no weights")
    (no_weights / "model.safetensors").rename(no_weights / "pytorch_model.bin")
    other = copied(model, "other")
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torn = copied(towers, "torn")
    (torn / "towers.json").write_text("{")
    half = copied(towers, "half")
    shutil.rmtree(half / "text_tower")
    for folder in (no_weights, other, torn, half, tmp_path / "absent"):
        with pytest.raises(BaseModelError) as caught:
            built(folder)
        assert caught.value.exit_code == 2 and str(folder) in str(caught.value)
    with pytest.raises(MachineError, match="local cache"):
        clip.build(clip.Config(), "somebody/some-clip", "cpu")


def test_a_model_at_hand_is_preferred_to_the_embedded_one(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert built(None).title == "the embedded labeller"
    shutil.copytree(model, tmp_path / "models/clip/mine")
    assert built(None).title == "CLIP, mine"


def test_a_name_is_said_only_on_a_plain_ground_and_only_when_likely(towers):
    captioner = built(towers)
    assert captioner.vectors.shape == (len(NAMES), 8) and not captioner.judges_captions
    noise = numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=numpy.uint8)
    drawing = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(drawing).rectangle((16, 16, 47, 47), fill=(200, 20, 20))
    photo, named = captioner.caption([Image.fromarray(noise), drawing])
    assert photo.speaker == "pixels" and photo.sure == 0 and [note.code for note in photo.doubts]
    assert not any(tag.group == "subject" for tag in photo.tags)
    assert {"red", "on a white background"} <= {tag.text for tag in named.tags}
    assert (named.tags[0].group == "subject") == (named.sure >= clip.NAMED)
    few = built(towers, groups=("palette", "setting"), at_most={"palette": 0}).caption([drawing])
    assert words(few) == [["on a white background"]] and few[0].sure == named.sure


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((28, 28, 35, 35), {"small in the frame"}),
        ((2, 2, 61, 61), {"filling the frame"}),
        ((2, 10, 20, 54), {"on the left"}),
        ((44, 44, 61, 61), {"small in the frame", "on the right", "near the bottom"}),
        ((16, 16, 47, 47), set()),
    ],
)
def test_composition_is_measured(box, said):
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).rectangle(box, fill=(20, 40, 220))
    seen = _pixels.measure(picture)
    assert {tag.text for tag in seen.tags if tag.group == "framing"} == said
    assert [tag.text for tag in seen.tags if tag.group == "palette"] == ["blue"]


@pytest.mark.parametrize(
    ("colour", "word"),
    [
        ((250, 250, 250), "white"),
        ((10, 10, 12), "black"),
        ((128, 128, 128), "grey"),
        ((220, 30, 30), "red"),
        ((240, 150, 30), "orange"),
        ((110, 60, 20), "brown"),
        ((240, 230, 40), "yellow"),
        ((40, 160, 60), "green"),
        ((40, 200, 200), "turquoise"),
        ((30, 60, 220), "blue"),
        ((130, 40, 200), "purple"),
        ((250, 150, 200), "pink"),
        ((240, 220, 190), "beige"),
    ],
)
def test_colours_have_plain_names(colour, word):
    assert _pixels.name(numpy.array(colour)) == word


def test_pictures_of_odd_shapes_are_labelled(model, towers):
    odd = [Image.new("RGB", size, "red") for size in ((1, 1), (1, 900), (900, 1), (2000, 8))]
    for folder in (model, towers):
        labels = built(folder, share=0.0).caption(odd)
        assert len(labels) == 4 and all(label.tags for label in labels)


def test_the_shipped_labeller_names_what_it_has_never_seen(root):
    """The example's icons are drawings it does not know, in a style that it does."""
    folder = root / "examples/style_high_contrast"
    rows = list(csv.DictReader((folder / "metadata.csv").open(encoding="utf-8")))
    labels = built(None).caption([Image.open(folder / row["file_name"]).convert("RGB") for row in rows])
    true = [row["prompt"].split(",")[0] for row in rows]
    said = [next((tag.text for tag in label.tags if tag.group == "subject"), "") for label in labels]
    right = sum(name == word for name, word in zip(true, said, strict=True))
    sure = [
        name == word for name, word, label in zip(true, said, labels, strict=True) if label.sure >= clip.NAME_UNSURE
    ]
    assert len(rows) == 60 and right >= 24
    assert len(sure) >= 10 and sum(sure) / len(sure) >= 0.7
