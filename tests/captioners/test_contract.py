"""What every captioner must do, on a tiny model of each; and what each does with models that are broken."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lora_scripts import messages, registry
from lora_scripts.contracts import Label
from lora_scripts.errors import BaseModelError, ConfigError, MachineError
from tests.captioners import tiny
from tests.tiny_clip import build_clip

NAMES = ("blip", "clip", "florence2", "openai_compatible", "vision_language", "wd14")
# A setting of each that changes what it says, or may.
CHANGES = {
    "blip": {"start": "a picture"},
    "clip": {"gain": 0.2},
    "florence2": {"task": "caption"},
    "openai_compatible": {"prompt": "?"},
    "vision_language": {"length": "tags"},
    "wd14": {"general": 0.9},
}


def pictures() -> list[Image.Image]:
    made = []
    for i, colour in enumerate(("red", "blue", "white", "green", "black")):
        picture = Image.new("RGB", (40 + 20 * i, 64 - 6 * i), colour)
        ImageDraw.Draw(picture).rectangle((2, 2, 12, 20), fill=(90, 40 * i, 200))
        made.append(picture)
    return [*made, Image.new("RGB", (1, 1), "red"), Image.new("RGB", (900, 3), "blue")]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("models")
    with tiny.server(
        lambda body: tiny.says(f"The image shows a {tiny.colour_of(body)} thing.") if body else (200, b"{}", {})
    ) as address:
        yield {
            "blip": str(tiny.write_blip(folder / "blip")),
            "clip": str(build_clip(folder / "clip")),
            "florence2": str(tiny.write_florence(folder / "florence2")),
            "openai_compatible": address,
            "vision_language": str(tiny.write_llava(folder / "llava")),
            "wd14": str(tiny.write_wd14(folder / "wd14")),
        }


def build(name: str, model: str, **options):
    module = registry.load("captioners", name)
    quick = {"tokens": 6} if name in ("blip", "florence2", "vision_language") else {}
    quick |= {"share": 0.0} if name == "clip" else {}
    return module.build(module.Config(**quick | options), model, "cpu")


def test_every_captioner_is_here():
    assert registry.names("captioners") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_as_many_as_pictures_in_order_whatever_the_batch(name, models):
    captioner = build(name, models[name])
    whole = captioner.caption(pictures())
    assert len(whole) == 7 and all(isinstance(label, Label) for label in whole)
    assert all(label.text or label.tags or label.doubts for label in whole)
    single = [captioner.caption([picture])[0] for picture in pictures()]
    assert [(label.text, [tag.text for tag in label.tags]) for label in whole] == [
        (label.text, [tag.text for tag in label.tags]) for label in single
    ]
    turned = captioner.caption(pictures()[::-1])
    assert [label.text for label in turned[::-1]] == [label.text for label in whole]
    assert captioner.batch_size >= 1 and captioner.title


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_follows_settings_and_weights(name, models, tmp_path):
    first, again = build(name, models[name]), build(name, models[name])
    assert first.identity == again.identity
    assert build(name, models[name], **CHANGES[name]).identity != first.identity
    if name == "openai_compatible":
        assert build(name, f"other@{models[name]}").identity != first.identity
        return
    copy = Path(shutil.copytree(models[name], tmp_path / "copy"))
    assert build(name, str(copy)).identity == first.identity
    weights = next(copy.glob("*.safetensors" if name != "wd14" else "model.onnx"))
    if name == "wd14":
        tiny.write_wd14(copy, side=24)
    else:
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(bytes(data))
    assert build(name, str(copy)).identity != first.identity


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_explained_in_both_languages(name, monkeypatch):
    fields = registry.load("captioners", name).Config.model_fields
    assert fields
    for language in messages.LANGUAGES:
        monkeypatch.setenv("LORA_SCRIPTS_LANG", language)
        for field in fields:
            assert len(messages.text(f"captioner.option.{name}.{field}")) > 4


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("openai_compatible", "clip")])
def test_models_that_cannot_be_used_are_sentences(name, models, tmp_path):
    copies = {}
    for broken in ("config", "weights", "pickle"):
        copies[broken] = Path(shutil.copytree(models[name], tmp_path / broken))
    if name == "wd14":
        (copies["config"] / "selected_tags.csv").write_text("id;label\n1;x\n")
        (copies["weights"] / "model.onnx").write_bytes(b"not a graph")
        (copies["pickle"] / "model.onnx").rename(copies["pickle"] / "model.pt")
    else:
        (copies["config"] / "config.json").write_text(json.dumps({"model_type": "bert"}))
        (copies["weights"] / "model.safetensors").write_bytes(b"\xff" * 40)
        (copies["pickle"] / "model.safetensors").rename(copies["pickle"] / "pytorch_model.bin")
    for folder in (*copies.values(), tmp_path / "absent"):
        with pytest.raises(BaseModelError) as caught:
            build(name, str(folder))
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    with pytest.raises(MachineError, match="local cache"):
        build(name, "somebody/some-model")


def test_weights_that_need_code_of_their_own_are_not_run():
    with pytest.raises(BaseModelError, match="florence-community"):
        build("florence2", "microsoft/Florence-2-base")


# wd14


def test_tags_are_those_of_plain_numpy(models):
    """The graph again by hand: sigmoid(mean of the padded square, blue first, times W, plus b)."""
    import numpy
    import onnx
    from onnx import numpy_helper

    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(f"{models['wd14']}/model.onnx").graph.initializer}
    square = Image.new("RGB", (16, 16), "white")
    square.paste(Image.new("RGB", (16, 8), (200, 100, 50)), (0, 4))
    means = numpy.asarray(square, dtype=numpy.float32)[:, :, ::-1].mean((0, 1))
    expected = 1 / (1 + numpy.exp(-(means @ kept["weights"] + kept["bias"])))
    captioner = build("wd14", models["wd14"], general=0.0, character=0.0, rating="last")
    (label,) = captioner.caption([Image.new("RGB", (32, 16), (200, 100, 50))])
    found = {tag.text: tag.score for tag in label.tags}
    names = ["1girl", "red square", "blue eyes", "^_^", "saber (fate)"]
    assert found.keys() >= set(names) and label.tags[-1].group == "rating"
    assert [found[name] for name in names] == pytest.approx([float(value) for value in expected[2:]], abs=1e-3)


def test_tags_are_written_as_asked(models):
    picture = pictures()[:1]

    def texts(**options):
        (label,) = build("wd14", models["wd14"], general=0.0, character=0.0, **options).caption(picture)
        return [tag.text for tag in label.tags]

    assert set(texts()) == {"1girl", "red square", "blue eyes", "^_^", "saber (fate)"}
    assert "red_square" in texts(spaces=False) and r"saber \(fate\)" in texts(escape=True)
    assert {"saber", "fate"} <= set(texts(expand=True)) and "saber (fate)" not in texts(expand=True)
    assert texts(order="alphabet") == sorted(texts()) and len(texts(most=2)) == 2
    assert texts(rating="first")[0] in ("general", "explicit")
    (nothing,) = build("wd14", models["wd14"], general=1.0, character=1.0).caption(picture)
    assert not nothing.tags and nothing.doubts[0].code == "captioner.few_tags"


def test_a_tagger_for_one_picture_at_a_time_works_too(tmp_path, models):
    fixed = build("wd14", str(tiny.write_wd14(tmp_path / "fixed", batch=1)))
    assert fixed.caption(pictures()) == build("wd14", models["wd14"]).caption(pictures())
    with pytest.raises(BaseModelError, match="5 outputs"):
        build("wd14", str(tiny.write_wd14(tmp_path / "five", outputs=5)))


# openai_compatible


def asked(address: str, **options) -> Label:
    return build("openai_compatible", address, **options).caption(pictures()[:1])[0]


def test_a_server_is_asked_with_picture_prompt_and_model(monkeypatch):
    seen = []

    def answer(body):
        seen.append(body)
        return tiny.says("Sure! The image shows a red square, which appears to be new.") if body else (200, b"{}", {})

    monkeypatch.setenv("MY_KEY", "sk-secret")
    with tiny.server(answer) as address:
        label = asked(f"qwen@{address}", prompt="What is it?", key_variable="MY_KEY")
    assert label.text == "A red square, which is new." and not label.doubts
    body = seen[-1]
    assert body["model"] == "qwen" and body["messages"][0]["content"][0]["text"] == "What is it?"
    assert body["authorization"] == "Bearer sk-secret" and tiny.colour_of(body) == "red"


def test_a_server_that_stumbles_is_asked_again(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answers = [(500, b"", {}), (429, b"", {}), tiny.says("A thing.")]
    with tiny.server(lambda body: answers.pop(0) if body else (404, b"", {})) as address:
        assert asked(address).text == "A thing."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((400, b"", {}), "HTTP 400"),
        ((200, b"{", {}), "no JSON"),
        ((200, b"[" * 100_000, {}), "no JSON"),
        ((200, b'{"choices": []}', {}), "unexpected answer"),
        ((200, b'{"choices": [{"message": {"content": 3}}]}', {}), "unexpected answer"),
        ((200, b" " * (1 << 20) + b"{}", {}), "1 MiB"),
        ((302, b"", {"Location": "http://127.0.0.1:9/elsewhere"}), "HTTP 302"),
    ],
)
def test_answers_that_are_none_are_doubts_of_that_picture(answer, reason, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with tiny.server(lambda body: answer if body else (200, b"{}", {})) as address:
        label = asked(address)
    assert not label.text and label.doubts[0].code == "captioner.server_failed"
    assert reason in str(label.doubts[0].params["reason"])


def test_a_cut_off_answer_loses_its_broken_sentence():
    with tiny.server(
        lambda body: tiny.says("A red square. It stands on a wh", "length") if body else (200, b"{}", {})
    ) as address:
        label = asked(address)
    assert label.text == "A red square." and label.doubts[0].code == "captioner.cut_off"


def test_an_absent_server_is_told_before_the_first_picture():
    with pytest.raises(MachineError, match="Nothing answers at") as caught:
        build("openai_compatible", "http://127.0.0.1:9/v1", timeout=2)
    assert caught.value.exit_code == 4
    for wrong in ("ftp://x/v1", "not an address", "http://user:word@host/v1"):
        with pytest.raises(ConfigError, match="no address"):
            build("openai_compatible", wrong)


def test_it_is_said_when_pictures_leave_the_machine():
    from lora_scripts.captioners.openai_compatible import Config, Server

    assert "leave this machine" in Server(Config(), "", "http://192.168.1.7:1234/v1").title
    assert "leave this machine" not in Server(Config(), "", "http://127.0.0.1:1234/v1").title
