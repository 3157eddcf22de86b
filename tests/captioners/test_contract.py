"""What every captioner must do, on a tiny model of each; and what each does with models that are broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lora_scripts import messages, registry
from lora_scripts.contracts import Label
from lora_scripts.errors import BaseModelError, MachineError
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


@pytest.mark.parametrize("name", ["blip", "florence2", "vision_language"])
def test_weights_that_are_not_whole_are_refused(name, models, tmp_path):
    """What is absent would be random, and the captions with it."""
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(models[name], tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    absent = next(key for key in tensors if key.endswith("weight") and "layer" in key)
    del tensors[absent]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match="lacks weights"):
        build(name, str(copy))


@pytest.mark.parametrize("name", ["blip", "florence2", "vision_language"])
def test_a_caption_that_fills_its_room_is_doubtful(name, models):
    (short,) = build(name, models[name], tokens=2).caption(pictures()[:1])
    assert [note.code for note in short.doubts] == ["captioner.cut_off"]


def test_an_end_that_is_said_is_no_cut():
    from types import SimpleNamespace

    import torch

    from lora_scripts.captioners._generation import was_cut

    free, forced = SimpleNamespace(eos_token_id=[2, 7]), SimpleNamespace(eos_token_id=2, forced_eos_token_id=2)
    for settings, ids, cut in (
        (free, [5, 6, 8, 9], True),
        (free, [5, 6, 8, 7], False),
        (free, [5, 2, 0, 0], False),
        (free, [5, 6, 2], False),
        (forced, [5, 6, 8, 2], True),
        (forced, [5, 6, 2, 0], False),
        (forced, [5, 2], False),
    ):
        assert was_cut(torch.tensor(ids), 4, settings) is cut, (settings, ids)


def test_weights_that_come_with_code_are_told_from_broken_ones(models, tmp_path):
    for name, kind, said in (("vision_language", "moondream1", "code of its own"), ("florence2", "x", "florence-comm")):
        copy = Path(shutil.copytree(models[name], tmp_path / name))
        config = json.loads((copy / "config.json").read_text())
        config |= {"model_type": kind, "auto_map": {"AutoConfig": "configuration.Config"}}
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(BaseModelError, match=said):
            build(name, str(copy))


def test_a_processor_does_without_its_part_for_videos(tmp_path):
    captioner = build("vision_language", str(tiny.write_qwen(tmp_path / "qwen")))
    labels = captioner.caption(pictures())
    assert len(labels) == 7 and all(label.text for label in labels)
    inputs = captioner.inputs([Image.new("RGB", (32, 32))])
    # 8 x 8 patches of 4 pixels, 2 x 2 of them a place.
    assert int((inputs["input_ids"] == captioner.writer.model.config.image_token_id).sum()) == 16


def test_a_package_that_a_processor_wants_is_named(models, monkeypatch):
    import transformers

    def absent(*_, **__):
        raise ImportError("\nPackage `num2words` is required to run SmolVLM processor. Install it.\nOr not.")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", absent)
    with pytest.raises(MachineError, match="num2words") as caught:
        build("vision_language", models["vision_language"])
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


def test_models_without_a_chat_and_templates_with_one_of_their_own(models, tmp_path):
    copy = Path(shutil.copytree(models["vision_language"], tmp_path / "copy"))
    template = copy / "chat_template.jinja"
    expected = build("vision_language", models["vision_language"]).caption(pictures()[:1])
    template.write_text("{% for turn in messages %}<image> {{ turn['content'] | trim }}{% endfor %}")
    assert build("vision_language", str(copy)).caption(pictures()[:1]) == expected
    template.write_text("{% for turn in messages %}no picture{% endfor %}")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        build("vision_language", str(copy))
    template.write_text("{% for")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        build("vision_language", str(copy))
    template.unlink()
    with pytest.raises(BaseModelError, match="no chat template"):
        build("vision_language", str(copy))


# wd14


def test_tags_are_those_of_plain_numpy(models):
    """The graph again by hand: sigmoid(mean of the padded square, blue first, times W, plus b)."""
    import numpy
    import onnx
    from onnx import numpy_helper

    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(f"{models['wd14']}/model.onnx").graph.initializer}
    square = Image.new("RGB", (32, 32), "white")
    square.paste(Image.new("RGB", (32, 16), (200, 100, 50)), (0, 8))
    square = square.resize((16, 16), Image.Resampling.BICUBIC)
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


def test_a_table_of_tags_with_holes_is_a_sentence_and_artists_are_not_said(models, tmp_path):
    copy = Path(shutil.copytree(models["wd14"], tmp_path / "copy"))
    table, text = copy / "selected_tags.csv", (copy / "selected_tags.csv").read_text()
    for hole in ("4", "4,blue_eyes", "4,,0,96"):
        table.write_text(text.replace("4,blue_eyes,0,96", hole))
        with pytest.raises(BaseModelError, match="line 6"):
            build("wd14", str(copy))
    table.write_text(text.replace("blue_eyes,0", "blue_eyes,1"))
    (label,) = build("wd14", str(copy), general=0.0, character=0.0).caption(pictures()[:1])
    assert {tag.text for tag in label.tags} == {"1girl", "red square", "^_^", "saber (fate)"}


def test_outputs_that_are_no_probabilities_are_refused(tmp_path):
    for bias in (float("nan"), 30.0):
        folder = tiny.write_wd14(tmp_path / str(bias), squashed=False, raised=bias)
        with pytest.raises(BaseModelError, match="0 to 1"):
            build("wd14", str(folder))


def test_a_gpu_that_onnx_runtime_cannot_use_is_said_and_not_asked_of(models):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    module = registry.load("captioners", "wd14")
    captioner = module.build(module.Config(), models["wd14"], "cuda:0")
    assert "on the CPU" in captioner.title and captioner.caption(pictures()[:1])[0].tags
    assert captioner.identity == build("wd14", models["wd14"]).identity
