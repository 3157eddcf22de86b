"""A LoRA from two models: what was put into the one is found again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts.adapters import files
from lora_scripts.errors import BaseModelError, ConfigError
from lora_scripts.lora_tools.extract import Order, extract
from lora_scripts.lora_tools.resize import Wish
from tests import tiny
from tests.adapters import language
from tests.lora_tools import making
from tests.lora_tools.making import Told

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sd_folder(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def pairs() -> dict:
    models = tiny.parts()
    return making.random_pairs(models["unet"], models["text_encoder"], rank=2, alpha=1.0, only="attn1") | (
        {"text_encoder": making.random_pairs(models["unet"], models["text_encoder"], rank=2)["text_encoder"]}
    )


@pytest.fixture(scope="module")
def tuned(base: Path, pairs: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with pairs added, and a bias that no LoRA can hold."""
    folder = tmp_path_factory.mktemp("bases") / "tuned"
    shutil.copytree(base, folder)
    for component, name in (("unet", UNET), ("text_encoder", "text_encoder/model.safetensors")):
        weights = load_file(folder / name)
        for module, pair in pairs[component].items():
            key = f"{module}.weight"
            key = key if key in weights else key.removeprefix("text_model.")
            weights[key] += making.delta(pair).float().view_as(weights[key])
        if component == "unet":
            weights["conv_in.bias"] += 0.3
        save_file(weights, folder / name, metadata={"format": "pt"})
    return folder


def run(tuned: Path, base: Path, output: Path, wish: Wish, **values) -> tuple[Path, Told]:
    told = Told()
    path = extract(Order(str(tuned), str(base), output, wish, **values), told)
    kept = Told()
    for code, sentence in zip(told.codes, told, strict=True):
        if code != "lora.extracting":
            kept.codes.append(code)
            kept.append(sentence)
    assert kept.codes != told.codes
    return path, kept


def test_what_was_added_is_found_again(tuned, base, pairs, tmp_path):
    path, told = run(tuned, base, tmp_path / "found.safetensors", Wish(rank=2), text_encoder=True)
    made = files.load(path)
    wanted, found = making.deltas(pairs), making.deltas(made.pairs)
    assert found.keys() == wanted.keys() and len(wanted) >= 20
    for name, value in wanted.items():
        # Float32 weights hold the difference to a few parts in a million.
        assert float((found[name] - value).norm()) <= 1e-5 * float(value.norm()), name
    assert made.meta.family == "sd" and made.meta.base_name == "base" and len(made.meta.base_hash) == 64
    assert told.codes == ["lora.extracted", "lora.kept", "lora.wrote", "lora.outputs_near"]
    assert "100 % of the energy" in told[1] and "of the whole difference" in told[0]
    assert "hold 100 %" not in told[0]


def test_energy_chooses_ranks(tuned, base, pairs, tmp_path):
    path, told = run(tuned, base, tmp_path / "found.safetensors", Wish(energy=0.6), dtype="float16")
    made = files.load(path, dtype=None)
    assert made.pairs.keys() == {"unet"} and made.pairs["unet"].keys() == pairs["unet"].keys()
    assert {pair.rank for pair in made.pairs["unet"].values()} <= {1, 2}
    assert {pair.up.dtype for pair in made.pairs["unet"].values()} == {torch.float16}
    assert told.codes[0] == "lora.text_encoder_differs" and "text_encoder differ too" in told[0]
    assert "the least" in told[2]


def test_one_file_and_a_folder_of_the_same_model(tuned, base, tmp_path):
    single = tiny.tiny_single_file(tmp_path / "base.safetensors")
    path, _ = run(tuned, single, tmp_path / "found.safetensors", Wish(rank=2), preset="attention")
    other, _ = run(tuned, base, tmp_path / "other.safetensors", Wish(rank=2), preset="attention")
    ours, theirs = making.deltas(files.load(path).pairs), making.deltas(files.load(other).pairs)
    assert ours.keys() == theirs.keys() and all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in ours)


def test_language_models_too(tmp_path):
    base = language.save_base(tmp_path / "base")
    tuned = tmp_path / "tuned"
    live = language.model()
    added = language.adapter(rank=2, alpha=2.0)
    with torch.no_grad():
        for module, pair in added.pairs["language_model"].items():
            live.get_submodule(module).weight += pair.delta()
    shutil.copytree(base, tuned)
    live.save_pretrained(tuned)
    path, told = run(tuned, base, tmp_path / "lora", Wish(rank=2))
    made = files.load(path)
    wanted, found = making.deltas(added.pairs), making.deltas(made.pairs)
    assert found.keys() == wanted.keys() and len(wanted) == 14
    assert all(float((found[n] - v).norm()) <= 1e-5 * float(v.norm()) for n, v in wanted.items())
    assert made.meta.base_reference and told.codes[-1] == "lora.outputs_near"


def test_refusals(tuned, base, tmp_path):
    out = tmp_path / "x.safetensors"
    with pytest.raises(BaseModelError, match="do not differ in the chosen layers"):
        run(base, base, out, Wish(rank=2))
    with pytest.raises(ConfigError, match="How large the LoRA may be is not said"):
        run(tuned, base, out, Wish())
    with pytest.raises(ConfigError, match=r"--targets nothing is not known to .*choose from attention"):
        run(tuned, base, out, Wish(rank=2), preset="nothing")
    with pytest.raises(BaseModelError, match="of another family than"):
        run(tuned, language.save_base(tmp_path / "text"), out, Wish(rank=2))
    second = tiny.tiny_sd_folder(tmp_path / "second", version=2)
    with pytest.raises(BaseModelError, match=r"not of one shape: \d+ weights differ, such as unet\."):
        run(tuned, second, out, Wish(rank=2))
    with pytest.raises(BaseModelError, match="absent does not exist"):
        run(tmp_path / "absent", base, out, Wish(rank=2))
    assert not out.exists()
