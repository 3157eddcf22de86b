"""Every layout of a LoRA file that people have, read into the same adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.adapters.families import key_maps
from lora_scripts.errors import BaseModelError
from tests.adapters.networks import META, adapter, flat, networks, same


@pytest.fixture(scope="module")
def made() -> Adapter:
    """Alpha differs from the rank, so that a lost alpha shows."""
    return adapter(rank=4, alpha=10.0)


PARTS = key_maps()["sd"].parts


def known() -> dict[str, list[str]]:
    return {component: [path for path, _ in module.named_modules()] for component, module in networks().items()}


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def kohya(folder: Path, made: Adapter, *, text: str = "lora_te", dtype=torch.float32) -> Path:
    tensors = {}
    for component, pairs in made.pairs.items():
        for path, pair in pairs.items():
            name = PARTS[component].kohya_name(path).replace("lora_te_", f"{text}_")
            tensors[f"{name}.lora_down.weight"] = pair.down.to(dtype)
            tensors[f"{name}.lora_up.weight"] = pair.up.to(dtype)
            tensors[f"{name}.alpha"] = torch.tensor(pair.alpha).to(dtype)
    return write(folder / "kohya file.safetensors", tensors, {"ss_output_name": "inside"})


def kohya_text1(folder: Path, made: Adapter) -> Path:
    return kohya(folder, made, text="lora_te1")


def paths(made: Adapter, form: Callable[[str, str], tuple[str, str]], *, bake: bool) -> dict[str, torch.Tensor]:
    tensors = {}
    for component, pairs in made.pairs.items():
        for path, pair in pairs.items():
            down, up = form(component, path)
            tensors[down] = pair.down
            tensors[up] = pair.up * pair.scale if bake else pair.up
    return tensors


def ours(component: str, path: str) -> tuple[str, str]:
    return f"{component}.{path}.lora_A.weight", f"{component}.{path}.lora_B.weight"


def diffusers_baked(folder: Path, made: Adapter) -> Path:
    return write(folder / "pytorch_lora_weights.safetensors", paths(made, ours, bake=True), {"format": "pt"})


def diffusers_folder(folder: Path, made: Adapter) -> Path:
    return diffusers_baked(folder, made).parent


def diffusers_with_settings(folder: Path, made: Adapter) -> Path:
    settings = {f"{c}.{key}": value for c in made.pairs for key, value in {"r": 4, "lora_alpha": 10.0}.items()}
    metadata = {"lora_adapter_metadata": json.dumps(settings), "format": "pt"}
    return write(folder / "settings.safetensors", paths(made, ours, bake=False), metadata)


def diffusers_flat_text(folder: Path, made: Adapter) -> Path:
    """Newer transformers leave "text_model." out, and so do files that are saved with it."""
    tensors = paths(made, ours, bake=True)
    return write(folder / "flat.safetensors", {k.replace(".text_model.", "."): v for k, v in tensors.items()})


def lora_down(component: str, path: str) -> tuple[str, str]:
    word = ".lora" if component == "unet" else ".lora_linear_layer"
    return f"{component}.{path}{word}.down.weight", f"{component}.{path}{word}.up.weight"


def diffusers_down(folder: Path, made: Adapter) -> Path:
    return write(folder / "down.safetensors", paths(made, lora_down, bake=True))


def old(component: str, path: str) -> tuple[str, str]:
    """The oldest names: processors, and a text encoder's projections called as the UNet's."""
    parent, _, word = path.rpartition(".")
    if component == "unet" and ".attn" in path:
        parent, _, word = path.removesuffix(".0").rpartition(".")
        start = f"unet.{parent}.processor.{word}_lora"
    elif component == "text_encoder" and "self_attn" in path:
        words = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
        start = f"text_encoder.{parent}.{words[word]}_lora"
    else:
        start = lora_down(component, path)[0].removesuffix(".down.weight")
    return f"{start}.down.weight", f"{start}.up.weight"


def diffusers_old(folder: Path, made: Adapter) -> Path:
    return write(folder / "old.safetensors", paths(made, old, bake=True))


def diffusers_alone(folder: Path, made: Adapter) -> Path:
    """Without "unet." in front, as a single network saved its processors."""
    tensors = paths(Adapter({"unet": made.pairs["unet"]}, META), old, bake=True)
    return write(folder / "alone.safetensors", {k.removeprefix("unet."): v for k, v in tensors.items()})


def peft_part(folder: Path, made: Adapter, component: str, **settings) -> Path:
    tensors = {}
    for path, pair in made.pairs[component].items():
        live = path.removeprefix("text_model.")
        tensors[f"base_model.model.{live}.lora_A.weight"] = pair.down
        tensors[f"base_model.model.{live}.lora_B.weight"] = pair.up
    write(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 10, "target_modules": ["to_q"], "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def peft_unet(folder: Path, made: Adapter) -> Path:
    return peft_part(folder, made, "unet")


def peft_text(folder: Path, made: Adapter) -> Path:
    return peft_part(folder, made, "text_encoder")


def peft_file_beside_its_config(folder: Path, made: Adapter) -> Path:
    return peft_part(folder, made, "unet") / "adapter_model.safetensors"


def peft_both(folder: Path, made: Adapter) -> Path:
    for component in made.pairs:
        peft_part(folder / component, made, component)
    return folder


WRITERS = {
    kohya: ("unet", "text_encoder"),
    kohya_text1: ("unet", "text_encoder"),
    diffusers_baked: ("unet", "text_encoder"),
    diffusers_folder: ("unet", "text_encoder"),
    diffusers_with_settings: ("unet", "text_encoder"),
    diffusers_flat_text: ("unet", "text_encoder"),
    diffusers_down: ("unet", "text_encoder"),
    diffusers_old: ("unet", "text_encoder"),
    diffusers_alone: ("unet",),
    peft_unet: ("unet",),
    peft_text: ("text_encoder",),
    peft_file_beside_its_config: ("unet",),
    peft_both: ("unet", "text_encoder"),
}


@pytest.mark.parametrize("with_model", [True, False], ids=["with the model's modules", "by words"])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_every_layout_gives_the_adapter(writer, with_model, made, tmp_path):
    expected = Adapter({component: made.pairs[component] for component in WRITERS[writer]}, META)
    path = writer(tmp_path / "lora", made)
    loaded = files.load(path, known_modules=known() if with_model else None)
    assert len(loaded) == {2: 91, 1: {"unet": 79, "text_encoder": 12}[WRITERS[writer][0]]}[len(WRITERS[writer])]
    same(expected, loaded, tolerance=2e-6)
    assert all(p.down.dtype == p.up.dtype == torch.float32 for p in flat(loaded).values())
    files.check(path, rank=4, components=WRITERS[writer])


def test_names_come_from_the_header_or_the_file(made, tmp_path):
    assert files.load(kohya(tmp_path, made)).meta.name == "inside"
    assert files.load(diffusers_baked(tmp_path, made)).meta.name == "pytorch_lora_weights"
    assert files.load(peft_unet(tmp_path / "some folder", made)).meta.name == "some folder"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_into_float32(dtype, made, tmp_path):
    loaded = files.load(kohya(tmp_path, made, dtype=dtype))
    for module, pair in flat(made).items():
        assert torch.equal(flat(loaded)[module].down, pair.down.to(dtype).float())
        assert flat(loaded)[module].alpha == 10.0


def test_an_alpha_of_zero_or_none_is_the_rank(made, tmp_path):
    pairs = {c: {p: replace(pair, alpha=0.0) for p, pair in part.items()} for c, part in made.pairs.items()}
    loaded = files.load(kohya(tmp_path, Adapter(pairs, META)))
    assert {pair.alpha for pair in flat(loaded).values()} == {4.0}
    tensors = {
        f"{PARTS['unet'].kohya_name(path)}.lora_{half}.weight": tensor
        for path, pair in made.pairs["unet"].items()
        for half, tensor in (("down", pair.down), ("up", pair.up))
    }
    assert {pair.alpha for pair in flat(files.load(write(tmp_path / "bare.safetensors", tensors))).values()} == {4.0}


def test_peft_patterns_and_stabilised_ranks(made, tmp_path):
    settings = {"use_rslora": True, "alpha_pattern": {r"attn2\.to_q": 3, "proj_in": 5}}
    loaded = files.load(peft_part(tmp_path, made, "unet", **settings))
    root = 4**0.5
    expected = {"attn2.to_q": 3 * root, "proj_in": 5 * root}
    seen = {value: 0 for value in (*expected.values(), 10 * root)}
    for path, pair in loaded.pairs["unet"].items():
        wanted = next((alpha for end, alpha in expected.items() if path.endswith(end)), 10 * root)
        assert pair.alpha == wanted
        seen[wanted] += 1
    assert min(seen.values()) >= 4


def test_settings_of_real_peft_and_diffusers_are_read(tmp_path, made):
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    from tests.adapters.networks import put, shake

    modules = networks()
    injected = put(modules, rank=4, alpha=10.0)
    shake(injected)
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(module) for name, module in modules.items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path / "with", **layers, **_collate_lora_metadata(modules))
    same(files.load(tmp_path / "with", known_modules=known()), injected.adapter(META), tolerance=2e-6)


def test_mixed_ranks_are_read_and_refused_for_continuing(tmp_path):
    small, large = adapter(rank=2, alpha=1.0), adapter(rank=8, alpha=8.0)
    mixed = Adapter({"unet": small.pairs["unet"], "text_encoder": large.pairs["text_encoder"]}, META)
    path = kohya(tmp_path, mixed)
    same(mixed, files.load(path), tolerance=1e-6)
    with pytest.raises(BaseModelError) as caught:
        files.check(path, rank=2, components=("unet", "text_encoder"))
    assert "2, 8" in str(caught.value)


def test_continuing_with_other_components_is_refused(made, tmp_path):
    with pytest.raises(BaseModelError) as caught:
        files.check(kohya(tmp_path, made), rank=4, components=("unet",))
    assert "text_encoder, unet" in str(caught.value) and "train_text_encoder" in str(caught.value)


def test_modules_that_the_model_does_not_have_are_named(made, tmp_path):
    pairs = {
        **made.pairs["unet"],
        "down_blocks.7.attentions.0.proj_in": LoraPair(torch.ones(4, 3), torch.ones(3, 4), 4),
    }
    path = kohya(tmp_path, Adapter({"unet": pairs}, META))
    with pytest.raises(BaseModelError) as caught:
        files.load(path, known_modules=known())
    assert "1 modules" in str(caught.value) and "down_blocks_7_attentions_0_proj_in" in str(caught.value)
    assert len(files.load(path)) == 80


def test_a_component_without_a_list_is_read_by_words(made, tmp_path):
    loaded = files.load(kohya(tmp_path, made), known_modules={"unet": known()["unet"]})
    assert {component: len(pairs) for component, pairs in loaded.pairs.items()} == {"text_encoder": 12, "unet": 79}
