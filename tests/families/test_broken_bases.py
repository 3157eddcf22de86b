"""Bases that are something else, incomplete or foolish: each is refused in words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_scripts
from lora_scripts import messages
from lora_scripts.contracts import Placement
from lora_scripts.errors import BaseModelError
from lora_scripts.families.sd import StableDiffusion
from lora_scripts.sampling import base_for
from tests import tiny

PLACEMENT = Placement(torch.device("cpu"), torch.float32, torch.float32)
UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."
WORDS, FIRST_CROSS = "embeddings.token_embedding.weight", "input_blocks.1.1.transformer_blocks.0.attn2"
# Whether a block attends is read off this one.
FIRST_NORM = f"{UNET}input_blocks.1.1.norm.weight"
# diffusers takes None for this one where it is absent.
TAKEN_BLINDLY = "first_stage_model.encoder.down.0.downsample.conv.bias"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The tensors of a good single file."""
    return load_file(tiny.tiny_single_file(tmp_path_factory.mktemp("sd") / "tiny.safetensors"))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return tiny.tiny_sd_folder(tmp_path_factory.mktemp("sd") / "tiny")


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "base"))


def refusal(path: Path) -> BaseModelError:
    """What a run says that names this base: every family is asked."""
    with pytest.raises(BaseModelError) as caught:
        base_for(str(path))
    assert str(path) in str(caught.value)
    return caught.value


# What a file holds beside nothing else, and the words that must say what it is.
KINDS = [
    ("base.is_lora", ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",), "LoRA"),
    ("base.is_lora", ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",), "LoRA"),
    ("base.is_lora", ("lora_unet_mid_block_x.hada_w1_a",), "LoRA"),
    ("base.part_missing", ("conditioner.embedders.1.model.ln_final.weight",), "UNet"),
    ("base.part_missing", (f"{UNET}input_blocks.4.1.transformer_blocks.1.attn1.to_q.weight",), "VAE"),
    ("base.other_kind", ("conditioner.embedders.0.model.ln_final.weight",), "refiner"),
    ("base.other_kind", ("joint_blocks.0.x_block.mlp.fc1.weight",), "Stable Diffusion 3"),
    ("base.other_kind", (f"{UNET}double_blocks.0.img_attn.qkv.weight",), "FLUX"),
    ("base.other_kind", ("single_transformer_blocks.0.attn.to_q.weight",), "FLUX"),
    ("base.other_kind", ("control_model.time_embed.0.weight",), "ControlNet"),
    ("base.other_kind", (f"{UNET}label_emb.0.0.weight", f"{UNET}input_blocks.0.0.weight"), "unCLIP"),
    ("base.other_kind", ("model.embed_tokens.weight",), "language model"),
    ("base.other_kind", ("emb_params",), "textual-inversion"),
    ("base.ema_only", ("model_ema.diffusion_modelinput_blocks00weight", "first_stage_model.x"), "EMA"),
    ("base.single_part", ("down_blocks.0.resnets.0.conv1.weight",), "UNet"),
    ("base.single_part", ("input_blocks.0.0.weight",), "UNet"),
    ("base.single_part", ("encoder.down_blocks.0.resnets.0.conv1.weight",), "VAE"),
    ("base.single_part", ("encoder.down.0.block.0.conv1.weight",), "VAE"),
    ("base.single_part", ("first_stage_model.encoder.conv_in.weight",), "VAE"),
    ("base.single_part", ("text_model.encoder.layers.0.mlp.fc1.weight",), "text encoder"),
    ("base.single_part", ("cond_stage_model.model.ln_final.weight",), "text encoder"),
]


@pytest.mark.parametrize(("code", "names", "said"), KINDS, ids=[row[1][0][:40] for row in KINDS])
def test_another_kind_of_file_is_called_by_its_name(tmp_path, code, names, said):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    error = refusal(path)
    assert (error.code, error.exit_code) == (code, 2)
    assert said in str(error)


def test_the_table_of_kinds_is_whole():
    assert len(KINDS) == 21


def test_refusals_are_whole_sentences_in_both_languages(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    for language in messages.LANGUAGES:
        monkeypatch.setenv("LORA_SCRIPTS_LANG", language)
        for _, names, _ in KINDS:
            save_file({name: torch.zeros(1) for name in names}, path)
            sentence = str(refusal(path))
            assert "{" not in sentence
            assert sentence.endswith("。" if language == "zh_CN" else (".", ")."))


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pth", "bin", "CKPT"])
def test_a_pickle_is_never_opened(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR.")
    path.chmod(0)
    error = refusal(path)
    assert error.code == "base.pickle"
    assert ".safetensors" in str(error)
    assert not (tmp_path / "canary").exists()


# Name, tensors that are left out (prefix) or replaced, code.
DAMAGED = [
    ("no VAE", "first_stage_model.", {}, "base.part_missing"),
    ("no text encoder", "cond_stage_model.", {}, "base.part_missing"),
    ("no post_quant_conv", "first_stage_model.post_quant_conv.", {}, "base.part_missing"),
    ("no token embedding", f"{TEXT}text_model.{WORDS}", {}, "base.part_missing"),
    ("no cross attention", f"{UNET}{FIRST_CROSS}", {}, None),
    ("no blocks", f"{UNET}input_blocks.", {f"{UNET}input_blocks.0.0.weight": (32, 4, 3, 3)}, "base.part_missing"),
    ("a vector for a matrix", "-", {f"{TEXT}text_model.{WORDS}": (49408,)}, "base.part_missing"),
    ("another text width", "-", {f"{UNET}{FIRST_CROSS}.to_k.weight": (32, 99)}, "base.parts_differ"),
    ("another VAE", "-", {"first_stage_model.post_quant_conv.weight": (16, 16, 1, 1)}, "base.parts_differ"),
    ("inpainting", "-", {f"{UNET}input_blocks.0.0.weight": (32, 9, 3, 3)}, "base.inpainting"),
]  # fmt: skip


@pytest.mark.parametrize(("prefix", "replaced", "code"), [r[1:] for r in DAMAGED], ids=[r[0] for r in DAMAGED])
def test_a_damaged_single_file_is_refused(whole, tmp_path, prefix, replaced, code):
    path = tmp_path / "x.safetensors"
    tensors = {name: tensor for name, tensor in whole.items() if not name.startswith(prefix)}
    save_file(tensors | {name: torch.zeros(shape) for name, shape in replaced.items()}, path)
    with pytest.raises(BaseModelError) as caught:
        base = StableDiffusion.recognise(path)
        assert base is not None and code is None
        StableDiffusion.load(base, PLACEMENT)
    assert caught.value.code == (code or "base.part_missing")


@pytest.mark.parametrize("version", [1, 2])
def test_no_single_tensor_may_be_missing(tmp_path, version):
    """diffusers' translation looks some names up blindly, and leaves others out in silence."""
    path = tmp_path / "x.safetensors"
    whole = load_file(tiny.tiny_single_file(path, version))
    unused = ("cond_stage_model.model.transformer.resblocks.2.",)
    names = [FIRST_NORM, TAKEN_BLINDLY, *sorted(name for name in whole if not name.startswith(unused))[::23]]
    for name in names:
        save_file({other: tensor for other, tensor in whole.items() if other != name}, path)
        with pytest.raises(BaseModelError) as caught:
            base = StableDiffusion.recognise(path, "epsilon")
            family = StableDiffusion.load(replace(base, prediction_type="epsilon"), PLACEMENT)
            assert family.vae is not None
            assert family.text_encoder is not None
        assert caught.value.code in ("base.part_missing", "base.parts_differ", "base.untranslated"), name
    assert len(names) >= 10


def test_the_table_of_damages_is_whole():
    assert len(DAMAGED) == 10


@pytest.mark.parametrize(
    "key", [f"{UNET}out.2.bias", "first_stage_model.quant_conv.bias", f"{TEXT}text_model.final_layer_norm.bias"]
)
def test_a_single_file_with_nan_is_refused(whole, tmp_path, key):
    path = tmp_path / "x.safetensors"
    save_file(whole | {key: whole[key] * float("nan")}, path)
    with pytest.raises(BaseModelError) as caught:
        family = StableDiffusion.load(StableDiffusion.recognise(path), PLACEMENT)
        assert family.vae is not None
        assert family.text_encoder is not None
    assert caught.value.code == "base.weights_not_finite"


def test_extra_tensors_of_old_files_do_no_harm(whole, tmp_path):
    """Betas, EMA copies, position ids and a text encoder without "text_model." in its names."""
    path = tmp_path / "x.safetensors"
    extra = {name.replace("text_model.", ""): tensor for name, tensor in whole.items() if name.startswith(TEXT)}
    extra |= {"betas": torch.zeros(1000), "model_ema.decay": torch.zeros(()), "global_step": torch.zeros((), dtype=int)}
    extra[f"{TEXT}embeddings.position_ids"] = torch.arange(77)[None]
    save_file({name: tensor for name, tensor in whole.items() if not name.startswith(TEXT)} | extra, path)
    family = StableDiffusion.load(StableDiffusion.recognise(path), PLACEMENT)
    ids = torch.arange(77)[None]
    with torch.no_grad():
        assert torch.equal(
            family.text_encoder(ids).last_hidden_state, tiny.parts()["text_encoder"](ids).last_hidden_state
        )


def setting(name: str, **values: Any) -> Change:
    """Change settings of a JSON file; None takes one out."""

    def change(folder: Path) -> None:
        path = folder / name
        known = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))

    return change


def removed(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def text(name: str, value: str) -> Change:
    return lambda folder: (folder / name).write_text(value)


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def edit(folder: Path) -> None:
        path = folder / name
        known = load_file(path)
        change(known)
        save_file(known, path)

    return edit


def as_pickle(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae/diffusion_pytorch_model.bin")


def cut(folder: Path) -> None:
    path = folder / "text_encoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def without_words(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)


def one_of_two_shards(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")


FOLDERS = [
    ("XL in name only", setting("model_index.json", _class_name="StableDiffusionXLPipeline"), "base.part_missing"),
    ("SD3 pipeline", setting("model_index.json", _class_name="StableDiffusion3Pipeline"), "base.other_pipeline"),
    ("no class", setting("model_index.json", _class_name=None), "base.other_pipeline"),
    ("index is a list", text("model_index.json", "[]"), "base.broken_json"),
    ("index is no JSON", text("model_index.json", "{"), "base.broken_json"),
    ("deep JSON", text("unet/config.json", "[" * 100_000), "base.broken_json"),
    ("no UNet settings", removed("unet/config.json"), "base.part_missing"),
    ("no VAE weights", removed("vae/diffusion_pytorch_model.safetensors"), "base.part_missing"),
    ("no scheduler", removed("scheduler/scheduler_config.json"), "base.part_missing"),
    ("VAE as a pickle", as_pickle, "base.pickle"),
    ("cut weights", cut, "base.truncated"),
    ("a shard is missing", one_of_two_shards, "base.part_missing"),
    ("no vocabulary", without_words, "base.part_missing"),
    ("empty vocabulary", text("tokenizer/tokenizer.json", '{"model": {"vocab": {}}}'), "base.tokenizer_differs"),
    ("foreign vocabulary", setting("text_encoder/config.json", vocab_size=1000), "base.tokenizer_differs"),
    ("a text for a list", setting("unet/config.json", block_out_channels="x"), "base.bad_setting"),
    ("an empty list", setting("vae/config.json", block_out_channels=[]), "base.bad_setting"),
    ("no width", setting("text_encoder/config.json", hidden_size=None), "base.bad_setting"),
    ("another width", setting("text_encoder/config.json", hidden_size=99), "base.parts_differ"),
    ("another VAE", setting("vae/config.json", latent_channels=16), "base.parts_differ"),
    ("inpainting", setting("unet/config.json", in_channels=9), "base.inpainting"),
    ("asks for sizes", setting("unet/config.json", addition_embed_type="text_time"), "base.more_conditions"),
    ("asks for guidance", setting("unet/config.json", time_cond_proj_dim=256), "base.more_conditions"),
    ("a scale by channel", setting("vae/config.json", latents_mean=[0.1, 0.2, 0.3, 0.4]), "base.other_scale"),
    ("predicts the picture", setting("scheduler/scheduler_config.json", prediction_type="sample"), "base.prediction"),
]


@pytest.mark.parametrize(("change", "code"), [row[1:] for row in FOLDERS], ids=[row[0] for row in FOLDERS])
def test_a_broken_folder_is_refused_before_it_is_loaded(folder, change, code):
    change(folder)
    assert refusal(folder).code == code


def test_the_table_of_folders_is_whole():
    assert len(FOLDERS) == 25


LOADED = [
    ("missing tensor", tensors("unet/diffusion_pytorch_model.safetensors", dict.popitem), "base.part_missing"),
    ("missing text tensor", tensors("text_encoder/model.safetensors", dict.popitem), "base.part_missing"),
    ("NaN", tensors("vae/diffusion_pytorch_model.safetensors", lambda t: next(iter(t.values())).fill_(float("nan"))),
     "base.weights_not_finite"),
    ("more channels than weights", setting("unet/config.json", block_out_channels=[32, 96]), "base.part_missing"),
    ("unknown block", setting("unet/config.json", down_block_types=["EvilBlock", "DownBlock2D"]), "base.cannot_load"),
    ("unknown scheduler", setting("scheduler/scheduler_config.json", _class_name="EvilScheduler"),
     "base.unknown_scheduler"),
    ("not a scheduler", setting("scheduler/scheduler_config.json", _class_name="DiffusionPipeline"),
     "base.unknown_scheduler"),
    ("flow matching", setting("scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
     "base.other_noise"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code"), [row[1:] for row in LOADED], ids=[row[0] for row in LOADED])
def test_what_only_loading_can_tell_is_refused_too(folder, change, code):
    """Otherwise diffusers and transformers fill the holes with random numbers, and only warn."""
    change(folder)
    with pytest.raises(BaseModelError) as caught:
        family = StableDiffusion.load(StableDiffusion.recognise(folder), PLACEMENT)
        assert family.vae is not None
        assert family.text_encoder is not None
    assert caught.value.code == code


def test_the_table_of_loads_is_whole():
    assert len(LOADED) == 8


def test_a_refusal_takes_less_than_three_seconds(folder):
    cut(folder)
    code = (
        "import sys; from pathlib import Path; from lora_scripts.families.sd import plugin\n"
        "from lora_scripts.errors import BaseModelError\n"
        "try: plugin.recognise(Path(sys.argv[1]))\n"
        "except BaseModelError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    started = time.perf_counter()
    source = str(Path(lora_scripts.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env={"PYTHONPATH": source}
    )
    seconds = time.perf_counter() - started
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert seconds < 3
