"""Stable Diffusion bases: recognised without torch, loaded from folder and single file alike, refused in words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts.adapters.inject import matching
from lora_scripts.contracts import Base, Placement
from lora_scripts.data.record import PictureExample
from lora_scripts.errors import BaseModelError, LoraScriptsError, MachineError
from lora_scripts.families import _shapes, _single_file
from lora_scripts.families.sd import StableDiffusion
from tests import tiny

CONFIGS = Path(_single_file.__file__).parent / "configs"
PLACEMENT = Placement(torch.device("cpu"), torch.float32, torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.tiny_sd_folder(tmp_path_factory.mktemp("sd") / "tiny")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return tiny.tiny_single_file(tmp_path_factory.mktemp("sd") / "tiny.safetensors")


def load(path: Path, said: str = "") -> StableDiffusion:
    base = StableDiffusion.recognise(path, said)
    return StableDiffusion.load(base, PLACEMENT)


def test_what_a_folder_says_of_itself(folder):
    base = StableDiffusion.recognise(folder)
    assert (base.family, base.prediction_type, base.resolution, base.multiple) == ("sd", "epsilon", 32, 4)
    assert base.max_tokens == 77 and base.parameters["unet"] == sum(
        p.numel() for p in tiny.parts()["unet"].parameters()
    )


def test_what_a_single_file_says_of_itself(single):
    base = StableDiffusion.recognise(single)
    assert (base.variant, base.prediction_type, base.resolution, base.webui) == ("sd1", "epsilon", 512, True)


def sample_inputs():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 49000, (1, 77), generator=generator)
    return torch.randn(1, 4, 8, 8, generator=generator), ids, torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1


@pytest.mark.parametrize("version", [1, 2])
def test_a_single_file_gives_what_its_folder_gives(tmp_path, version):
    latents, ids, pixels = sample_inputs()
    path = tiny.tiny_single_file(tmp_path / "one.safetensors", version)
    family = load(path, "epsilon")
    parts = tiny.parts(version)
    assert family.base.variant == f"sd{version}"
    with torch.no_grad():
        states = family.text_encoder(ids).last_hidden_state
        assert torch.equal(states, parts["text_encoder"](ids).last_hidden_state)
        assert torch.equal(family.unet(latents, 7, states).sample, parts["unet"](latents, 7, states).sample)
        mean = family.vae.encode(pixels).latent_dist.mean
        assert torch.equal(mean, parts["vae"].encode(pixels).latent_dist.mean)
        assert torch.equal(family.vae.decode(mean).sample, parts["vae"].decode(mean).sample)


def test_diffusers_reads_the_test_file_alike(tmp_path, folder, single):
    """The writer of the test files is right: diffusers' own single-file loader gives the same UNet."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_single_file(str(single), config=str(folder), subfolder="unet")
    ours = load(single).unet.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items()) and len(ours) > 100


def test_half_precision_files_load_in_any_format(tmp_path):
    path = tiny.tiny_single_file(tmp_path / "half.safetensors", dtype=torch.float16)
    base = StableDiffusion.recognise(path)
    for dtype in (torch.float32, torch.bfloat16):
        family = StableDiffusion.load(base, Placement(torch.device("cpu"), dtype, torch.float32))
        assert {p.dtype for p in family.unet.parameters()} == {dtype}
        assert {p.dtype for p in family.text_encoder.parameters()} == {torch.float32}


class Shapes:
    """The shapes of a full-size original-layout file, without its bytes."""

    def __init__(self, shapes):
        self.shapes, self.metadata = shapes, {}


def test_a_file_of_full_size_has_the_public_settings():
    """Key for key, for UNet and text encoder of Stable Diffusion 1.5."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    public = json.loads((CONFIGS / "sd1_unet.json").read_text())
    words = json.loads((CONFIGS / "sd1_text_encoder.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(public)
        text = CLIPTextModel(CLIPTextConfig(**words))
        vae = AutoencoderKL.from_config(
            tiny.vae_settings()
            | {
                "block_out_channels": [128, 256, 512, 512],
                "layers_per_block": 2,
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
            }
        )
    tensors = tiny.unet_to_original(unet) | tiny.vae_to_original(vae) | tiny.text_to_original(text, 1)
    file = Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    layout = _single_file.choose(file, StableDiffusion.architecture)
    assert _shapes.unet_config(file, layout) == public
    assert _shapes.text_config(file, layout.encoders["text_encoder"]) == words
    read = _shapes.vae_config(file, layout)
    assert read["block_out_channels"] == [128, 256, 512, 512] and read["layers_per_block"] == 2
    assert len(file.shapes) == 686 + 248 + 196


def test_presets_match_the_modules_kohya_trains():
    base = Base("x", Path("x"), "sd", "sd1", "epsilon", 512, 64, 77, {})
    with torch.device("meta"):
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        unet = UNet2DConditionModel.from_config(json.loads((CONFIGS / "sd1_unet.json").read_text()))
        text = CLIPTextModel(CLIPTextConfig(**json.loads((CONFIGS / "sd1_text_encoder.json").read_text())))
    counts = {
        preset: (
            len(matching("unet", unet, patterns["unet"])),
            len(matching("text_encoder", text, patterns["text_encoder"])),
        )
        for preset, patterns in StableDiffusion.target_presets.items()
    }
    assert counts == {"attention": (128, 48), "kohya": (192, 72), "kohya+conv": (278, 72)}
    assert base.family == StableDiffusion.name


def test_v_prediction_of_second_versions_comes_from_markers_or_is_left_open(tmp_path):
    plain = tiny.tiny_single_file(tmp_path / "plain.safetensors", 2)
    assert StableDiffusion.recognise(plain).prediction_type == ""
    assert StableDiffusion.recognise(plain, "v_prediction").resolution == 768
    said = tiny.tiny_single_file(tmp_path / "said.safetensors", 2, **{"modelspec.prediction_type": "v"})
    assert StableDiffusion.recognise(said).prediction_type == "v_prediction"
    marked = load_file(plain)
    save_file(marked | {"v_pred": torch.zeros(0)}, tmp_path / "marked.safetensors")
    assert StableDiffusion.recognise(tmp_path / "marked.safetensors").prediction_type == "v_prediction"


def keys(*names: str):
    def write(path: Path) -> Path:
        save_file({name: torch.zeros(2, 2) for name in names}, path / "x.safetensors")
        return path / "x.safetensors"

    return write


def without(prefix: str):
    def write(path: Path) -> Path:
        tensors = load_file(tiny.tiny_single_file(path / "whole.safetensors"))
        save_file({k: v for k, v in tensors.items() if not k.startswith(prefix)}, path / "x.safetensors")
        return path / "x.safetensors"

    return write


def inpainting(path: Path) -> Path:
    tensors = load_file(tiny.tiny_single_file(path / "whole.safetensors"))
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(tensors, path / "x.safetensors")
    return path / "x.safetensors"


def raw(name: str, data: bytes):
    def write(path: Path) -> Path:
        (path / name).write_bytes(data)
        return path / name

    return write


def cut(path: Path) -> Path:
    whole = tiny.tiny_single_file(path / "x.safetensors")
    whole.write_bytes(whole.read_bytes()[:-1000])
    return whole


def changed_folder(change):
    def write(path: Path) -> Path:
        return change(tiny.tiny_sd_folder(path / "folder")) or path / "folder"

    return write


def as_pickle(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def of_class(name: str):
    def change(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))

    return change


REFUSALS = [
    ("LoRA", keys("lora_unet_mid_block_x.lora_down.weight"), "LoRA"),
    ("LLM", keys("model.layers.0.mlp.weight"), "LLM"),
    ("FLUX", keys("double_blocks.0.img_attn.qkv.weight"), "FLUX"),
    ("SD3", keys("model.diffusion_model.joint_blocks.0.x_block.weight"), "Stable Diffusion 3"),
    ("component", keys("down_blocks.0.resnets.0.conv1.weight"), "diffusers component"),
    ("no VAE", without("first_stage_model"), "VAE"),
    ("no text encoder", without("cond_stage_model"), "text encoder"),
    ("inpainting", inpainting, "9 channels"),
    ("pickle", raw("x.ckpt", b"\x80\x04."), "pickle"),
    ("pickle in disguise", raw("x.safetensors", b"\x80\x04." + b"x" * 100), "x.safetensors"),
    ("empty", raw("x.safetensors", b""), "x.safetensors"),
    ("text", raw("x.safetensors", b"<html>Not found</html>"), "x.safetensors"),
    ("huge header", raw("x.safetensors", b"\xff" * 8 + b"{}"), "x.safetensors"),
    ("cut short", cut, "cut short"),
    ("folder with pickles", changed_folder(as_pickle), "pickle"),
    ("folder without UNet", changed_folder(lambda f: shutil.rmtree(f / "unet")), "unet/"),
    (
        "folder without words",
        changed_folder(
            lambda f: [p.unlink() for p in (f / "tokenizer").glob("*.json") if "config" not in p.name] and None
        ),
        "tokenizer",
    ),
    ("folder of another pipeline", changed_folder(of_class("FluxPipeline")), "FluxPipeline"),
    ("broken JSON", changed_folder(lambda f: (f / "unet" / "config.json").write_text("{") and None), "config.json"),
]


@pytest.mark.parametrize(("write", "said"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_refused_in_words(tmp_path, write, said):
    path = write(tmp_path)
    with pytest.raises(BaseModelError) as caught:
        StableDiffusion.recognise(path)
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_the_table_is_whole():
    assert len(REFUSALS) == 19


def test_an_unknown_file_is_nobodys(tmp_path):
    assert StableDiffusion.recognise(keys("something.else")(tmp_path)) is None
    (tmp_path / "empty").mkdir()
    assert StableDiffusion.recognise(tmp_path / "empty") is None


def test_a_hub_id_without_network_says_so():
    with pytest.raises(MachineError, match="nobody/nothing") as caught:
        StableDiffusion.recognise(Path("nobody/nothing"))
    assert isinstance(caught.value, LoraScriptsError) and caught.value.exit_code == 4


def test_captions_that_are_cut_are_counted(folder):
    example = PictureExample("0/a", Path("a.png"), "", ("a red disc", "a disc"), (48, 48), (32, 32))
    base = StableDiffusion.recognise(folder)
    assert StableDiffusion.notes(base, [example]) == []
    long = replace(example, captions=("a red disc, " * 40, "short"))
    (note,) = StableDiffusion.notes(base, [example, long])
    assert note.params["count"] == 1 and note.params["limit"] == 75 and note.params["most"] == 160


@pytest.mark.slow
def test_a_full_size_file_needs_little_more_memory_than_its_size(tmp_path):
    """2 GB of fp16 in, bf16 base out: at most file + 1.5 GB resident, measured in a process of its own."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    path = tmp_path / "full.safetensors"
    _write_full(path)
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from lora_scripts.families.sd import plugin; from lora_scripts.contracts import Placement\n"
        "from lora_scripts.train.memory import peak_bytes\n"
        "base = plugin.recognise(Path(sys.argv[1]))\n"
        "family = plugin.load(base, Placement(torch.device('cpu'), torch.bfloat16, torch.float32))\n"
        "family.vae, family.text_encoder\n"
        "print(peak_bytes())"
    )
    source = Path(_single_file.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(source), "PATH": ""},
    )
    peak = int(done.stdout.strip().splitlines()[-1])
    assert peak <= path.stat().st_size + 1.5 * 2**30, f"{peak / 2**30:.2f} GiB"
    assert UNet2DConditionModel and AutoencoderKL and CLIPTextModel and CLIPTextConfig


def _write_full(path: Path) -> None:
    """Write a file of Stable Diffusion 1.5's shape with small random weights, tensor by tensor."""
    import struct

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    large = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    large |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((CONFIGS / "sd1_unet.json").read_text()))
        text = CLIPTextModel(CLIPTextConfig(**json.loads((CONFIGS / "sd1_text_encoder.json").read_text())))
        vae = AutoencoderKL.from_config(tiny.vae_settings() | large)
    shapes = {n: tuple(t.shape) for n, t in (tiny.unet_to_original(unet) | tiny.vae_to_original(vae)).items()}
    shapes |= {n: tuple(t.shape) for n, t in tiny.text_to_original(text, 1).items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator) * 0.02
            if name.endswith("norm.weight") or ".norm" in name or "layer_norm" in name:
                values = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
            file.write(values.half().numpy().tobytes())
