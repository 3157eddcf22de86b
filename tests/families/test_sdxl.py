"""Two text encoders, sizes and cuts: what is this family's own; the rest stands in tests/contracts/test_family.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts.adapters.inject import matching
from lora_scripts.contracts import Batch, Draw, Placement
from lora_scripts.data.record import PictureExample
from lora_scripts.errors import BaseModelError
from lora_scripts.families import _shapes, _single_file, _tokens
from lora_scripts.families.sdxl import StableDiffusionXL, sizes
from lora_scripts.files import sha256_of
from lora_scripts.sampling import base_for
from tests import tiny

CONFIGS = Path(_single_file.__file__).parent / "configs"
PLACEMENT = Placement(torch.device("cpu"), torch.float32, torch.float32)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.tiny_sdxl_folder(tmp_path_factory.mktemp("xl") / "tiny")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return tiny.tiny_sdxl_file(tmp_path_factory.mktemp("xl") / "tiny.safetensors")


@pytest.fixture(scope="module")
def whole(single) -> Tensors:
    return load_file(single)


def load(path: Path) -> StableDiffusionXL:
    return StableDiffusionXL.load(StableDiffusionXL.recognise(path), PLACEMENT)


def test_what_a_folder_and_a_file_say_of_themselves(folder, single):
    base = StableDiffusionXL.recognise(folder)
    assert (base.variant, base.webui, base.resolution, base.multiple) == ("custom", False, 32, 8)
    base = StableDiffusionXL.recognise(single)
    assert (base.variant, base.webui, base.resolution, base.multiple) == ("custom", False, 1024, 8)
    counted = {name: sum(p.numel() for p in module.parameters()) for name, module in tiny.xl_parts().items()}
    # The file holds a number that training it needed: the logits' scale.
    assert dict(base.parameters) == counted | {"text_encoder_2": counted["text_encoder_2"] + 1}


def test_diffusers_reads_the_test_file_alike(folder, single):
    """The writer of the test files is right: diffusers' own single-file loader gives the same UNet."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_single_file(str(single), config=str(folder), subfolder="unet")
    ours = load(single).unet.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items()) and len(ours) > 200


def test_every_weight_of_a_file_is_its_folders(folder, single):
    one, other = load(folder), load(single)
    checked = 0
    for ours, theirs in ((one.trainable() | {"vae": one.vae}, other.trainable() | {"vae": other.vae}),):
        for name, module in ours.items():
            found = theirs[name].state_dict()
            assert [key for key, tensor in module.state_dict().items() if not torch.equal(tensor, found[key])] == []
            checked += len(found)
    assert checked > 500


def full_size() -> dict[str, Any]:
    """The public networks on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vae = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "scaling_factor": 0.13025}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(public("sdxl_unet")),
            "vae": AutoencoderKL.from_config(tiny.vae_settings() | vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**public("sd1_text_encoder"))),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**public("sdxl_text_encoder_2"))),
        }


def public(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


class Shapes:
    """The shapes of a full-size original-layout file, without its bytes."""

    def __init__(self, shapes):
        self.shapes, self.metadata = shapes, {}


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return full_size()


def test_a_file_of_full_size_has_the_public_settings(networks):
    tensors = tiny.xl_to_original(networks)
    file = Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    layout = _single_file.choose(file, StableDiffusionXL.architecture)
    unet, vae = _shapes.unet_config(file, layout), _shapes.vae_config(file, layout)
    assert unet == public("sdxl_unet")
    assert _shapes.text_config(file, layout.encoders["text_encoder"]) == public("sd1_text_encoder")
    assert _shapes.text_config(file, layout.encoders["text_encoder_2"]) == public("sdxl_text_encoder_2")
    assert (vae["scaling_factor"], vae["sample_size"]) == (0.13025, 1024)
    assert StableDiffusionXL.architecture.variant(unet, vae) == "sdxl"
    assert StableDiffusionXL.architecture.variant(unet | {"layers_per_block": 1}, vae) == "custom"
    assert len(file.shapes) == 1680 + 248 + 196 + 390


def test_presets_match_the_modules_kohya_trains(networks):
    components = ("unet", "text_encoder", "text_encoder_2")
    counts = {
        preset: tuple(len(matching(name, networks[name], patterns[name])) for name in components)
        for preset, patterns in StableDiffusionXL.target_presets.items()
    }
    assert counts == {"attention": (560, 48, 128), "kohya": (722, 72, 192), "kohya+conv": (788, 72, 192)}


def test_what_the_unet_is_told_of_sizes():
    """As diffusers' script counts: scaled to the shorter side, then cut from the middle."""

    def told(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, ...]:
        return sizes(PictureExample("x", Path("x"), "", ("",), size, bucket))

    assert told((1024, 1024), (1024, 1024)) == (1024, 1024, 0, 0, 1024, 1024)
    assert told((2000, 1000), (512, 512)) == (1000, 2000, 0, 256, 512, 512)
    assert told((900, 1600), (512, 768)) == (1600, 900, 71, 0, 768, 512)
    for width, height in ((640, 480), (333, 1000), (1201, 700)):
        side = 256
        factor = side / min(width, height)
        top, left = (round((length * factor - side) / 2) for length in (height, width))
        assert told((width, height), (side, side)) == (height, width, top, left, side, side)


def test_predict_is_the_plain_computation(folder, tmp_path):
    """Tokens, states, pooled text and sizes by hand, from diffusers and transformers alone."""
    path = next(tiny.tiny_pictures(tmp_path / "p", 1, (90, 48)).glob("*.png"))
    example = PictureExample("0/a", path, sha256_of(path), ("a red disc",), (90, 48), (32, 32))
    family = load(folder)
    entry = {
        k: v for request in family.requests(example, Draw("a red disc")) for k, v in family.encode([request])[0].items()
    }
    tensors = family.collate([example, example], [entry, entry])
    batch = Batch(2.0, torch.ones(2), tensors, [torch.Generator().manual_seed(s) for s in (1, 2)], ["x", "y"])
    noisy, timesteps = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 900])

    models = tiny.xl_parts()
    words = [49406, *family.tokenizer("a red disc").input_ids[1:-1], 49407]
    first = torch.tensor([words + [49407] * (77 - len(words))] * 2)
    second = torch.tensor([words + [0] * (77 - len(words))] * 2)
    with torch.no_grad():
        one = models["text_encoder"](first, output_hidden_states=True).hidden_states[-2]
        two = models["text_encoder_2"](second, output_hidden_states=True)
        added = {"text_embeds": two.text_embeds, "time_ids": torch.tensor([[48.0, 90, 0, 14, 32, 32]] * 2)}
        states = torch.cat([one, two.hidden_states[-2]], dim=-1)
        theirs = models["unet"](noisy, timesteps, states, added_cond_kwargs=added).sample
        ours = family.predict(noisy, timesteps, batch)
        assert torch.allclose(ours, theirs, atol=1e-5)
        moved = batch.tensors | {"sizes": batch.tensors["sizes"] + 100}
        assert not torch.allclose(family.predict(noisy, timesteps, replace(batch, tensors=moved)), theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_each_tokenizer_pads_as_its_encoder_was_trained(folder, single, kind):
    family = load(folder if kind == "folder" else single)
    for component, padding in (("text_encoder", 49407), ("text_encoder_2", 0)):
        ids = _tokens.ids(family.tokenizer_of(component), "a cat", 77)
        assert ids.tolist() == [49406, 320, 2368, 49407] + [padding] * 73


def test_what_a_file_predicts(whole, tmp_path):
    def said(metadata: dict[str, str] | None = None, wish: str = "", **extra: torch.Tensor) -> StableDiffusionXL:
        path = tmp_path / "x.safetensors"
        save_file(whole | extra, path, metadata=metadata)
        return StableDiffusionXL.recognise(path, wish)

    assert said().prediction_type == "epsilon"
    assert said(wish="v_prediction").prediction_type == "v_prediction"
    assert said({"modelspec.prediction_type": "v"}).prediction_type == "v_prediction"
    base = said(v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    assert base.prediction_type == "v_prediction"
    family = StableDiffusionXL.load(base, PLACEMENT)
    assert float(family.alphas_cumprod[-1]) < 1e-6 < float(load_scheduler(whole, tmp_path).alphas_cumprod[-1])
    assert family.preview(["a cat"], size=(32, 32), seed=1, steps=2, guidance=3.0)[0].size == (32, 32)


def load_scheduler(whole: Tensors, tmp_path: Path) -> Any:
    save_file(whole, tmp_path / "plain.safetensors")
    return load(tmp_path / "plain.safetensors").scheduler


def test_a_vae_in_half_precision_encodes_in_float32(tmp_path):
    path = tiny.tiny_sdxl_file(tmp_path / "half.safetensors", dtype=torch.float16)
    base = StableDiffusionXL.recognise(path)
    family = StableDiffusionXL.load(base, replace(PLACEMENT, base_dtype=torch.bfloat16))
    assert {p.dtype for p in family.vae.parameters()} == {torch.float32}
    assert {p.dtype for p in family.text_encoder_2.parameters()} == {torch.float32}
    assert {p.dtype for p in family.unet.parameters()} == {torch.bfloat16}
    assert family._scaling == 0.13025
    assert family.preview(["a cat"], size=(32, 32), seed=1, steps=1, guidance=3.0)[0].size == (32, 32)


UNET, FIRST, SECOND = "model.diffusion_model.", "conditioner.embedders.0.", "conditioner.embedders.1."
IN, SIZED = f"{UNET}input_blocks.0.0.weight", f"{UNET}label_emb.0.0.weight"


def refiner(tensors: Tensors) -> Tensors:
    """One encoder, OpenCLIP's, in the first place."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(FIRST)}
    return {name.replace(SECOND, FIRST): tensor for name, tensor in kept.items()}


def lacking(start: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}


def having(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(shape)}


FILES = [
    ("refiner", refiner, "base.other_kind", "refiner"),
    ("inpainting", having(IN, 32, 9, 3, 3), "base.inpainting", "9 channels"),
    ("editing", having(IN, 32, 8, 3, 3), "base.inpainting", "8 channels"),
    ("no UNet", lacking(UNET), "base.part_missing", "UNet"),
    ("no VAE", lacking("first_stage_model."), "base.part_missing", "VAE"),
    ("no first encoder", lacking(FIRST), "base.part_missing", FIRST),
    ("no second encoder", lacking(SECOND), "base.part_missing", SECOND),
    ("no size embedding", lacking(f"{UNET}label_emb"), "base.part_missing", "label_emb"),
    ("no projection", lacking(f"{SECOND}model.text_projection"), "base.part_missing", "text_projection"),
    ("another size embedding", having(SIZED, 128, 99), "base.parts_differ", "belong together"),
    ("another width", having(f"{SECOND}model.token_embedding.weight", 49408, 128), "base.parts_differ", "together"),
    ("a LoRA", having("lora_te2_x.lora_down.weight", 2, 2), "base.is_lora", "LoRA"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "said"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_another_file_is_refused_in_words(whole, tmp_path, change, code, said):
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(whole).items()}, path)
    with pytest.raises(BaseModelError) as caught:
        base_for(str(path))
    assert (caught.value.code, caught.value.exit_code) == (code, 2)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_the_table_of_files_is_whole():
    assert len(FILES) == 12


def test_no_single_tensor_may_be_missing(whole, tmp_path):
    """diffusers' translation looks some names up blindly, and leaves others out in silence."""
    path = tmp_path / "x.safetensors"
    unused = (f"{SECOND}model.logit_scale",)
    words = "embedding.weight"
    small = {name: tensor for name, tensor in whole.items() if not name.endswith(words)}
    for name in sorted(name for name in small if not name.startswith(unused))[::61]:
        save_file({other: tensor for other, tensor in whole.items() if other != name}, path)
        with pytest.raises(BaseModelError) as caught:
            family = load(path)
            assert family.vae is not None and len(family.trainable()) == 3
        assert caught.value.code in ("base.part_missing", "base.parts_differ", "base.untranslated"), name
    assert len(small) > 500


def changed(name: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / name
        known = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))

    return change


FOLDERS = [
    ("refiner", changed("model_index.json", text_encoder=[None, None], _class_name="StableDiffusionXLImg2ImgPipeline"),
     "base.other_kind"),
    ("inpainting pipeline", changed("model_index.json", _class_name="StableDiffusionXLInpaintPipeline"),
     "base.other_pipeline"),
    ("inpainting", changed("unet/config.json", in_channels=9), "base.inpainting"),
    ("no second encoder", lambda f: shutil.rmtree(f / "text_encoder_2"), "base.part_missing"),
    ("no second tokenizer", lambda f: shutil.rmtree(f / "tokenizer_2"), "base.part_missing"),
    ("second encoder as a pickle",
     lambda f: (f / "text_encoder_2/model.safetensors").rename(f / "text_encoder_2/model.bin"), "base.pickle"),
    ("no sizes", changed("unet/config.json", addition_embed_type=None), "base.bad_setting"),
    ("other sizes", changed("unet/config.json", addition_time_embed_dim=16), "base.parts_differ"),
    ("another width", changed("text_encoder_2/config.json", hidden_size=128), "base.parts_differ"),
    ("another projection", changed("text_encoder_2/config.json", projection_dim=49), "base.parts_differ"),
    ("shorter texts", changed("text_encoder_2/config.json", max_position_embeddings=64), "base.parts_differ"),
    ("a scale by channel", changed("vae/config.json", latents_mean=[0.0] * 4), "base.other_scale"),
    ("1.5 in name only", changed("model_index.json", _class_name="StableDiffusionPipeline"), "base.more_conditions"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code"), [row[1:] for row in FOLDERS], ids=[row[0] for row in FOLDERS])
def test_another_folder_is_refused_in_words(folder, tmp_path, change, code):
    copy = Path(shutil.copytree(folder, tmp_path / "base"))
    change(copy)
    with pytest.raises(BaseModelError) as caught:
        base_for(str(copy))
    assert caught.value.code == code
    assert str(copy) in str(caught.value)


def test_the_table_of_folders_is_whole():
    assert len(FOLDERS) == 13


def test_the_same_parts_under_another_pipelines_name_load(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "base"))
    changed("model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")(copy)
    assert StableDiffusionXL.recognise(copy).parameters == StableDiffusionXL.recognise(folder).parameters
