"""A loaded base at work: what previews, LoRAs, precisions and captions may not disturb in each other."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lora_scripts
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.apply import added
from lora_scripts.adapters.inject import inject
from lora_scripts.contracts import Batch, Draw, Placement
from lora_scripts.data.record import PictureExample
from lora_scripts.errors import DataError
from lora_scripts.families import _single_file, _tokens
from lora_scripts.families.sd import StableDiffusion
from lora_scripts.files import sha256_of
from tests import tiny

TOKENIZER = Path(_single_file.__file__).parent / "clip_tokenizer"
WISH = {"size": (32, 32), "seed": 3, "steps": 2, "guidance": 4.0}


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return tiny.tiny_single_file(tmp_path_factory.mktemp("sd") / "tiny.safetensors")


def load(path: Path, dtype: torch.dtype = torch.float32) -> StableDiffusion:
    base = StableDiffusion.recognise(path, "epsilon")
    base = replace(base, prediction_type=base.prediction_type or "epsilon")
    return StableDiffusion.load(base, Placement(torch.device("cpu"), dtype, torch.float32))


@pytest.fixture
def family(single) -> StableDiffusion:
    return load(single)


@pytest.fixture
def example(tmp_path) -> PictureExample:
    path = next(tiny.tiny_pictures(tmp_path / "p", 1).glob("*.png"))
    return PictureExample("0/a", path, sha256_of(path), ("a red disc",), (48, 48), (32, 32))


def text_adapter(family: StableDiffusion) -> Adapter:
    """A strong LoRA on one layer of the text encoder."""
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(*s, generator=generator) for s in ((4, tiny.TEXT_WIDTH), (tiny.TEXT_WIDTH, 4)))
    name = "text_model.encoder.layers.0.self_attn.out_proj"
    return Adapter({"text_encoder": {name: LoraPair(down, up, 4.0)}}, AdapterMeta("sd", "x"))


def test_a_lora_on_the_text_encoder_outlives_the_first_picture(family):
    """Letting go of the text encoder after a picture lost what had been added to its weights."""
    plain = family.preview(["a cat"], **WISH)[0].tobytes()
    with added(family.trainable(), [(text_adapter(family), 1.0)]):
        first = family.preview(["a cat"], **WISH)[0].tobytes()
        second = family.preview(["a cat"], **WISH)[0].tobytes()
    assert first == second != plain
    assert family.preview(["a cat"], **WISH)[0].tobytes() == plain


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_previews_leave_no_trace(tmp_path, single, kind):
    """Neither in the random state, which loading a text encoder drew from, nor in modes, gradients or memory."""
    family = load(single if kind == "file" else tiny.tiny_sd_folder(tmp_path / "tiny"))
    family.unet.train()
    family.unet.mid_block.eval()
    modes = {name: child.training for name, child in family.unet.named_modules()}
    weights = {name: tensor.clone() for name, tensor in family.unet.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    pictures = family.preview(["a cat", "a dog"], **WISH)
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: child.training for name, child in family.unet.named_modules()} == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in family.unet.state_dict().items())
    assert len(modes) > 100


def test_released_encoders_are_gone_and_stay_gone_after_a_preview(family):
    memory = [weakref.ref(family.vae), weakref.ref(family.text_encoder)]
    family.release_encoders()
    gc.collect()
    assert [reference() for reference in memory] == [None, None]
    family.preview(["a cat"], **WISH)
    assert (family._vae, family._encoders) == (None, {})


def test_a_text_encoder_that_trains_is_not_released(family):
    family.train_components(("unet", "text_encoder"))
    encoder = family.trainable()["text_encoder"]
    family.release_encoders()
    family.preview(["a cat"], **WISH)
    assert family.trainable()["text_encoder"] is encoder


def test_previews_equal_those_of_diffusers(family):
    """The picture another program draws from the same base, prompt and seed."""
    pipeline = family.pipeline()
    wish = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 4.0}
    theirs = pipeline("a cat", generator=torch.Generator().manual_seed(3), **wish).images[0]
    ours = family.preview(["a cat"], **WISH)[0]
    difference = np.abs(np.asarray(theirs).astype(int) - np.asarray(ours).astype(int))
    assert difference.max() <= 1
    assert np.asarray(ours).std() > 1


def test_previews_work_while_a_bf16_base_carries_float32_pairs(single):
    family = load(single, torch.bfloat16)
    modules = {"unet": family.unet}
    injected = inject(
        modules,
        targets={"unet": StableDiffusion.target_presets["kohya"]["unet"]},
        rank=2,
        alpha=2.0,
        dropout=0.5,
        seed=1,
    )
    plain = family.preview(["a cat"], **WISH)[0].tobytes()
    for parameter in injected.parameters("unet").values():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(2))
    strengths = []
    for strength in (0.0, 0.5, 1.0):
        with injected.scaled(strength):
            strengths.append(family.preview(["a cat"], **WISH)[0].tobytes())
    assert strengths[0] == plain
    assert len(set(strengths)) == 3
    assert all(parameter.requires_grad for parameter in injected.parameters("unet").values())


def test_a_picture_that_the_vae_breaks_on_is_named(family, example):
    family.vae.encoder.conv_in.bias.data[0] = float("inf")
    request = family.requests(example, Draw("", False))[0]
    with pytest.raises(DataError) as caught:
        family.encode([request])
    assert str(example.path) in str(caught.value)


def test_a_picture_that_changed_since_it_was_read_is_not_cached_under_its_old_name(family, example):
    request = family.requests(example, Draw("", False))[0]
    example.path.write_bytes(next(tiny.tiny_pictures(example.path.parent / "q", 1).glob("*.png")).read_bytes()[:-1])
    with pytest.raises(DataError):
        family.encode([request])


def test_a_mirrored_visit_is_encoded_mirrored(family, example):
    plain, flipped = (family.requests(example, Draw("", flip))[0] for flip in (False, True))
    assert plain.content != flipped.content
    one, other = family.encode([plain, flipped])
    assert not torch.equal(one["mean"], other["mean"])
    assert one["mean"].shape == other["mean"].shape == (4, 16, 16)
    assert one["mean"].dtype == torch.float32


def test_latents_are_the_scaled_posterior_of_each_rows_own_generator(family, example):
    entry = family.encode([family.requests(example, Draw("", False))[0]])[0]

    def rows(*seeds: int) -> torch.Tensor:
        tensors = family.collate([example] * len(seeds), [entry] * len(seeds))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return family.latents(Batch(1.0, torch.ones(len(seeds)), tensors, generators, ["x"] * len(seeds)))

    noise = torch.randn(entry["mean"].shape, generator=torch.Generator().manual_seed(7))
    assert torch.equal(rows(7)[0], (entry["mean"] + entry["deviation"] * noise) * 0.18215)
    assert torch.equal(rows(8, 7)[1], rows(7)[0])


def test_a_change_of_any_encoder_setting_makes_its_entries_new(single):
    keys = {part: load(single).encoder_key(part) for part in ("latents", "text")}
    assert keys == {part: load(single).encoder_key(part) for part in keys}
    other = load(single)
    other.vae.register_to_config(norm_num_groups=16)
    other.text_encoder.config.hidden_act = "gelu"
    assert {part: other.encoder_key(part) for part in keys}.items().isdisjoint(keys.items())


def caption_note(caption: str) -> list:
    example = PictureExample("x", Path("x.png"), "", (caption,), (64, 64), (64, 64))
    return _tokens.notes(TOKENIZER, 77, [example])


@pytest.mark.parametrize(
    "caption",
    [
        "a red cat sits on the table and looks out of the window at the snow, " * 6,
        "一只红色的猫坐在桌子上，看着窗外的雪，旁边有一盏灯和很多书，光线柔和，水彩风格，细节丰富，色彩淡雅。",
        "🐈🪟❄️📚" * 20,
        "ﷺ" * 60,
    ],
    ids=["English", "Chinese", "emoji", "one letter of many bytes"],
)
def test_captions_that_are_cut_are_told_in_every_script(caption):
    """A letter may take several tokens: counting letters missed a Chinese caption of 136 tokens."""
    (note,) = caption_note(caption)
    assert note.code == "base.captions_cut"
    assert note.params["most"] > note.params["limit"] == 75


def test_captions_that_fit_are_not_told():
    assert caption_note("a " * 74) == []
    assert len(caption_note("a " * 76)) == 1
    assert caption_note("一只红色的猫") == []


def test_counting_tokens_needs_no_torch():
    code = (
        "import sys; from pathlib import Path; from lora_scripts.families import _tokens\n"
        "print(_tokens._counts(Path(sys.argv[1]), ['a cat ' * 50]), 'torch' in sys.modules)"
    )
    source = str(Path(lora_scripts.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(TOKENIZER)], capture_output=True, text=True, env={"PYTHONPATH": source}
    )
    assert done.stdout.split() == ["[102]", "False"], done.stderr


def test_the_tokenizer_is_clips():
    """Ids that are the same in every copy of CLIP's vocabulary."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    assert len(tokenizer) == 49408
    assert tokenizer.model_max_length == 77
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    assert (vocabulary["!"], vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (0, 49406, 49407)
    assert len((TOKENIZER / "merges.txt").read_text(encoding="utf-8").splitlines()) == 1 + 48894
    by_parts = CLIPTokenizer(str(TOKENIZER / "vocab.json"), str(TOKENIZER / "merges.txt"))
    texts = ["A Photo, of\ta  CAT's 3 hats!", "一只猫 🐈", "naïve café — don't", ""]
    assert [tokenizer(text).input_ids for text in texts] == [by_parts(text).input_ids for text in texts]


@pytest.mark.parametrize(("version", "padding"), [(1, 49407), (2, 0)])
def test_each_version_pads_as_it_was_trained(tmp_path, version, padding):
    family = load(tiny.tiny_single_file(tmp_path / "x.safetensors", version))
    ids = _tokens.ids(family.tokenizer, "a cat", 77)
    assert ids.tolist() == [49406, 320, 2368, 49407] + [padding] * 73
