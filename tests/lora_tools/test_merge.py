"""Merging: the sum, exactly or at a rank, held against matrices, diffusers and peft."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_scripts.adapters import apply, files
from lora_scripts.errors import BaseModelError, ConfigError
from lora_scripts.lora_tools import sources
from lora_scripts.lora_tools.merge import Order, merge
from tests import tiny
from tests.adapters.networks import networks, outputs
from tests.exporters.loading import _pipeline, difference
from tests.lora_tools import making
from tests.lora_tools.making import Told


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two LoRAs of different ranks, alphas and modules, with convolutions."""
    live = networks()
    first = making.random_pairs(live["unet"], live["text_encoder"], rank=4, alpha=2.0, seed=1)
    second = making.random_pairs(live["unet"], rank=3, alpha=6.0, seed=2, only="attn1")
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    header = making.HEADER | {"ss_output_name": "other", "modelspec.trigger_phrase": "a blue tone"}
    making.kohya(one, first)
    making.kohya(other, second, dtype=torch.float16, header=header)
    return one, other


def run(paths, weights, output: Path, **values) -> tuple[Path, Told]:
    told = Told()
    named = [sources.Named(path, weight) for path, weight in zip(paths, weights, strict=True)]
    return merge(Order(named, output, **values), told), told


def summed(paths, weights) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, value in making.deltas(files.load(path).pairs).items():
            total[name] = total.get(name, 0) + weight * value
    return total


@pytest.mark.parametrize("weights", [(0.6, 0.4), (1.0, -0.5), (2.0, 0.03)])
def test_an_exact_merge_is_the_sum(two, tmp_path, weights):
    path, told = run(two, weights, tmp_path / "sum.safetensors")
    made, wanted = making.deltas(files.load(path).pairs), summed(two, weights)
    assert made.keys() == wanted.keys() and len(wanted) == 62
    for name, value in wanted.items():
        assert float((made[name] - value).norm()) <= 1e-6 * float(value.norm()), name
    ranks = {pair.rank for part in files.load(path).pairs.values() for pair in part.values()}
    assert ranks == {4, 7}
    assert told.codes == ["lora.merged_exactly", "lora.wrote"] and "62 modules" in told[-1]


def test_a_merge_at_06_and_04_is_the_two_loaded_together(two, tmp_path):
    path, _ = run(two, (0.6, 0.4), tmp_path / "sum.safetensors")
    together, single, bare = networks(), networks(), networks()
    pipeline = _pipeline(together)
    for name, file in zip(("one", "other"), two, strict=True):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(["one", "other"], [0.6, 0.4])
    _pipeline(single).load_lora_weights(str(path.parent), weight_name=path.name)
    theirs, ours = outputs(together), outputs(single)
    assert difference(theirs, ours) < 1e-5
    assert difference(theirs, outputs(bare)) > 1e-2
    live = networks()
    with apply.added(live, [(files.load(two[0]), 0.6), (files.load(two[1]), 0.4)]):
        assert difference(outputs(live), ours) < 1e-5


def test_at_a_rank_it_is_the_best_there_is(two, tmp_path):
    path, told = run(two, (0.6, 0.4), tmp_path / "small.safetensors", rank=2)
    made, wanted = making.deltas(files.load(path).pairs), summed(two, (0.6, 0.4))
    whole = lost = 0.0
    for name, value in wanted.items():
        tail = float(torch.linalg.svdvals(value)[2:].square().sum())
        error = float((made[name] - value).square().sum())
        assert error == pytest.approx(tail, rel=1e-4, abs=1e-8), name
        whole, lost = whole + float(value.square().sum()), lost + tail
    assert {pair.rank for part in files.load(path).pairs.values() for pair in part.values()} == {2}
    assert sources.percent(1 - lost / whole) in told[0] and sources.percent(math.sqrt(lost / whole)) in told[0]


def test_at_a_rank_that_holds_all_nothing_is_lost(two, tmp_path):
    path, told = run(two, (0.6, 0.4), tmp_path / "all.safetensors", rank=7)
    made, wanted = making.deltas(files.load(path).pairs), summed(two, (0.6, 0.4))
    assert all(float((made[n] - v).norm()) <= 1e-6 * float(v.norm()) for n, v in wanted.items())
    assert "100 %" in told[0]


def test_the_header_tells_where_it_comes_from(two, tmp_path):
    path, _ = run(two, (0.6, 0.4), tmp_path / "both worlds.safetensors")
    with safe_open(str(path), "pt") as file:
        header = file.metadata()
    assert header["ss_output_name"] == header["modelspec.title"] == "both worlds"
    assert header["modelspec.merged_from"] == "tiny style, other"
    assert header["modelspec.trigger_phrase"] == "in tiny style, a blue tone"
    assert header["ss_training_comment"] == "merged: tiny style x 0.6, other x 0.4"
    assert header["ss_base_weights_hash"] == "ab" * 32
    assert "ss_learning_rate" not in header and header["ss_steps"] == "0"


def test_bases_that_differ_are_told_and_not_claimed(two, tmp_path):
    making.kohya(two[1], files.load(two[1]).pairs, header=making.HEADER | {"ss_base_weights_hash": "cd" * 32})
    path, told = run(two, (1, 1), tmp_path / "x.safetensors")
    assert "trained on different weights" in told[0]
    assert files.load(path).meta.base_hash == ""


def test_number_format_of_ones_choice(two, tmp_path):
    path, _ = run(two, (0.6, 0.4), tmp_path / "half.safetensors", dtype="float16")
    formats = {tensor.dtype for tensor in load_file(path).values()}
    assert formats == {torch.float16}


def test_language_models_merge_into_a_folder_that_peft_loads(tmp_path):
    from peft import PeftModel

    from tests.adapters import language
    from tests.test_exporting import trained

    base = language.save_base(tmp_path / "base")
    one = trained(tmp_path / "one", base, rank=4, alpha=8.0)
    other = trained(tmp_path / "other", base, rank=2, alpha=3.0)
    path, told = run((one, other), (0.6, -0.4), tmp_path / "sum", base=str(base))
    assert told.codes[-1] == "lora.outputs_same"
    assert json.loads((path / "adapter_config.json").read_text())["r"] == 6
    single = PeftModel.from_pretrained(language.model(), str(path)).eval()
    both = PeftModel.from_pretrained(language.model(), str(one), adapter_name="one")
    both.load_adapter(str(other), adapter_name="other")
    both.add_weighted_adapter(["one", "other"], [0.6, -0.4], "sum", combination_type="cat")
    both.set_adapter("sum")
    found, wanted = language.logits(single), language.logits(both.eval())
    assert float((found - wanted).abs().max()) < 1e-5
    assert float((found - language.logits(language.model())).abs().max()) > 1e-2


def lycoris(path: Path, kind: str) -> Path:
    """Write a LoHa or a DoRA of one projection and one convolution."""
    from safetensors.torch import save_file

    from tests.adapters.networks import networks

    generator = torch.Generator().manual_seed(5)
    named = dict(networks()["unet"].named_modules())
    tensors = {}
    for module in ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"):
        weight = named[module].weight
        rows, columns = weight.shape[0], weight[0].numel()
        name = "lora_unet_" + module.replace(".", "_")
        if kind == "loha":
            sizes = {"w1_a": (rows, 2), "w1_b": (2, columns), "w2_a": (rows, 2), "w2_b": (2, columns)}
            tensors |= {f"{name}.hada_{r}": torch.randn(size, generator=generator) for r, size in sizes.items()}
        else:
            kernel = tuple(1 for _ in weight.shape[2:])
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, *weight.shape[1:], generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, 2, *kernel, generator=generator)
            tensors[f"{name}.dora_scale"] = torch.rand(rows, 1, *kernel, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path, metadata={"ss_base_model_version": "sd_v1"})
    return path


def test_other_kinds_need_a_rank_and_dora_is_refused(two, tmp_path):
    loha = lycoris(tmp_path / "loha.safetensors", "loha")
    with pytest.raises(ConfigError, match=r"loha\.safetensors holds updates of the kind loha.*--rank R"):
        run((two[0], loha), (1, 1), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="name the base with --base"):
        run((two[0], loha), (1, 1), tmp_path / "x.safetensors", rank=4)
    dora = lycoris(tmp_path / "dora.safetensors", "dora")
    for values in ({}, {"rank": 4}):
        with pytest.raises(BaseModelError, match=r"dora\.safetensors .*depend on the base's weights"):
            run((two[0], dora), (1, 1), tmp_path / "x.safetensors", **values)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sd_folder(tmp_path_factory.mktemp("bases") / "base")


def test_the_bases_outputs_are_the_same(base, tmp_path):
    models = tiny.parts()
    one = making.random_pairs(models["unet"], models["text_encoder"], alpha=3.0)
    other = making.random_pairs(models["unet"], rank=2, seed=8)
    paths = [making.kohya(tmp_path / f"{n}.safetensors", p) for n, p in (("one", one), ("other", other))]
    _, told = run(paths, (0.6, 0.4), tmp_path / "sum.safetensors", base=str(base))
    assert told.codes[-1] == "lora.outputs_same" and "Outputs of base: the same" in told[-1]
    _, told = run(paths, (0.6, 0.4), tmp_path / "small.safetensors", base=str(base), rank=1)
    assert told.codes[-1] == "lora.outputs_near"
    share = float(told[-1].rpartition(" by ")[2].split(" %")[0])
    assert 1 < share < 100


def test_a_loha_is_summed_at_a_rank_with_the_kernels_of_its_base(base, tmp_path):
    loha = lycoris(tmp_path / "loha.safetensors", "loha")
    own = making.kohya(tmp_path / "own.safetensors", making.random_pairs(tiny.parts()["unet"], only="mid_block"))
    path, _ = run((own, loha), (0.5, 2.0), tmp_path / "sum.safetensors", rank=64, base=str(base))
    made, theirs = files.load(path).pairs["unet"], files.load(loha).pairs["unet"]
    for module, update in theirs.items():
        wanted = 2 * update.delta().double() + 0.5 * making.delta(files.load(own).pairs["unet"][module])
        assert float((making.delta(made[module]) - wanted).norm()) <= 1e-5 * float(wanted.norm())
    assert made["mid_block.resnets.0.conv1"].down.shape[2:] == (3, 3)


def test_families_and_sizes_do_not_mix(two, tmp_path):
    from tests.adapters import language
    from tests.test_exporting import trained

    text = trained(tmp_path / "text", language.save_base(tmp_path / "base"))
    with pytest.raises(BaseModelError, match=r"one\.safetensors is for .* and .*text for LLM; they cannot become one"):
        run((two[0], text), (1, 1), tmp_path / "x.safetensors")
    small = {
        "unet": {"mid_block.resnets.0.conv1": making.LoraPair(torch.ones(2, 8, 3, 3), torch.ones(64, 2, 1, 1), 1.0)}
    }
    making.kohya(tmp_path / "small.safetensors", small)
    with pytest.raises(BaseModelError, match=r"mid_block\.resnets\.0\.conv1 is 64 x 576 in the first and 64 x 72"):
        run((two[0], tmp_path / "small.safetensors"), (1, 1), tmp_path / "x.safetensors")
