"""Conversions there and back: every tensor's bytes, and what the header told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_scripts.adapters import files
from lora_scripts.errors import ConfigError
from lora_scripts.lora_tools.convert import Order, convert
from lora_scripts.lora_tools.sources import Named
from tests.adapters.networks import networks, outputs
from tests.exporters.loading import _pipeline, difference
from tests.lora_tools import making
from tests.lora_tools.making import Told

# Layout between, number format of the tensors, of the alphas, alpha: each differs in what could lose a bit.
WAYS = [
    ("diffusers", torch.float32, None, 7.3),
    ("diffusers", torch.float16, None, 1.0),
    ("diffusers", torch.bfloat16, None, 4.0),
    ("diffusers", torch.float16, torch.float32, 7.3),
    ("peft", torch.float32, None, 1.0),
    ("peft", torch.float16, torch.float32, 7.3),
    ("peft", torch.bfloat16, None, 4.0),
]


def run(path: Path, to: str, output: Path | None = None, **values) -> tuple[Path, Told]:
    told = Told()
    return convert(Order(Named(path), to, output, **values), told), told


def header(path: Path) -> dict[str, str]:
    with safe_open(str(path), "pt") as file:
        return file.metadata()


def same_bytes(first: Path, second: Path) -> None:
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys() and len(ours) == 186
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape, name
        assert (
            tensor.numpy().tobytes() == theirs[name].numpy().tobytes()
            if tensor.dtype != torch.bfloat16
            else (tensor.view(torch.int16).equal(theirs[name].view(torch.int16)))
        ), name


@pytest.mark.parametrize(("between", "dtype", "alpha_dtype", "alpha"), WAYS)
def test_there_and_back_gives_the_same_bytes(tmp_path, between, dtype, alpha_dtype, alpha):
    live = networks()
    pairs = making.random_pairs(live["unet"], live["text_encoder"], alpha=alpha)
    first = making.kohya(tmp_path / "style.safetensors", pairs, dtype=dtype, alpha_dtype=alpha_dtype)
    there, told = run(first, between)
    assert there == tmp_path / f"style-{between}" and "lora.converted_exactly" in told.codes
    # A program that knows nothing of alphas in headers would be wrong, and a person is told.
    assert ("lora.alpha_in_header" in told.codes) is (between == "diffusers" and alpha != 4.0)
    back, told = run(there, "kohya", tmp_path / "back.safetensors")
    assert told.codes[-1] == "lora.converted_exactly"
    same_bytes(first, back)


def test_own_alphas_and_ranks_come_back(tmp_path):
    live = networks()
    pairs = making.random_pairs(live["unet"], live["text_encoder"], rank=4)
    for number, (module, pair) in enumerate(pairs["unet"].items()):
        rank = 1 + number % 4
        pairs["unet"][module] = making.LoraPair(pair.down[:rank], pair.up[:, :rank], 0.5 + number)
    first = making.kohya(tmp_path / "style.safetensors", pairs)
    for between in ("diffusers", "peft"):
        there, _ = run(first, between)
        back, told = run(there, "kohya", tmp_path / f"from-{between}.safetensors")
        same_bytes(first, back)
        # Diffusers would read this one wrongly, and a person is told so.
        assert "lora.converted_exactly" in told.codes and "adapter.mixed_alphas" in told.codes


def test_what_the_header_told_comes_back(tmp_path):
    live = networks()
    first = making.kohya(tmp_path / "style.safetensors", making.random_pairs(live["unet"]))
    for between in ("diffusers", "peft"):
        there, _ = run(first, between)
        back, _ = run(there, "kohya", tmp_path / f"from-{between}.safetensors")
        ours, theirs = header(first), header(back)
        lost = {key for key, value in ours.items() if theirs.get(key) != value and key != "ss_output_name"}
        assert lost == set()


def test_diffusers_makes_the_same_of_both(tmp_path):
    live = networks()
    pairs = making.random_pairs(live["unet"], live["text_encoder"], alpha=1.5)
    first = making.kohya(tmp_path / "style.safetensors", pairs)
    there, _ = run(first, "diffusers")
    found = []
    for path in (first, there / files.DIFFUSERS_FILE):
        modules = networks()
        _pipeline(modules).load_lora_weights(str(path.parent), weight_name=path.name)
        found.append(outputs(modules))
    assert difference(*found) < 1e-6
    assert difference(found[0], outputs(networks())) > 1e-2


def test_peft_makes_the_same_of_it(tmp_path):
    from peft import PeftModel

    from lora_scripts.adapters import apply

    live = networks()
    pairs = making.random_pairs(live["unet"], live["text_encoder"], alpha=1.5)
    there, _ = run(making.kohya(tmp_path / "style.safetensors", pairs), "peft")
    modules = networks()
    wrapped = {c: PeftModel.from_pretrained(m, str(there / c)).eval() for c, m in modules.items()}
    with apply.added(live, [(files.load(tmp_path / "style.safetensors"), 1.0)]):
        assert difference(outputs(live), outputs(wrapped)) < 1e-5


def test_another_number_format_is_told(tmp_path):
    first = making.kohya(tmp_path / "style.safetensors", making.random_pairs(networks()["unet"]))
    path, told = run(first, "kohya", tmp_path / "half.safetensors", dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert told.codes[-1] == "lora.converted_rounded" and "52 of 52 modules" in told[-1]


def test_what_has_no_place_is_refused(tmp_path):
    from tests.adapters import language
    from tests.lora_tools.test_merge import lycoris
    from tests.test_exporting import trained

    with pytest.raises(ConfigError, match=r"diffusers has no place for .*loha"):
        run(lycoris(tmp_path / "loha.safetensors", "loha"), "diffusers")
    text = trained(tmp_path / "text", language.save_base(tmp_path / "base"))
    for to in ("kohya", "diffusers"):
        with pytest.raises(ConfigError, match=f"{to} has no place for the family causal_lm"):
            run(text, to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "loha.safetensors", "text"]


@pytest.mark.parametrize("kind", ["loha", "dora"])
def test_other_kinds_come_back_too(tmp_path, kind):
    from tests.lora_tools.test_merge import lycoris

    first = lycoris(tmp_path / "style.safetensors", kind)
    there, told = run(first, "peft")
    back, told = run(there, "kohya", tmp_path / "back.safetensors")
    assert "lora.converted_exactly" in told.codes
    ours, theirs = load_file(first), load_file(back)
    assert ours.keys() == theirs.keys() and len(ours) > 6
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
