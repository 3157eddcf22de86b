"""Lower ranks: the smallest that keep what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts.adapters import files
from lora_scripts.errors import ConfigError
from lora_scripts.lora_tools import sources
from lora_scripts.lora_tools.resize import Order, Wish, resize
from tests.adapters.networks import networks, outputs
from tests.exporters.loading import _pipeline, difference
from tests.lora_tools import making
from tests.lora_tools.making import Told


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Rank 8, with singular values that fall steeply."""
    live = networks()
    pairs = making.random_pairs(live["unet"], live["text_encoder"], rank=8, alpha=3.0)
    for part in pairs.values():
        for number, (module, pair) in enumerate(part.items()):
            fall = (0.2 + 0.1 * (number % 6)) ** torch.arange(8.0)
            up = pair.up * fall.reshape(1, -1, *(1 for _ in pair.up.shape[2:]))
            part[module] = making.LoraPair(pair.down, up, 3.0)
    return making.kohya(tmp_path / "style.safetensors", pairs)


def run(path: Path, output: Path, wish: Wish, **values) -> tuple[Path, Told]:
    told = Told()
    return resize(Order(sources.Named(path), output, wish, **values), told), told


@pytest.mark.parametrize(
    "wish", [Wish(energy=0.9), Wish(energy=0.99), Wish(rank=3), Wish(rank=3, energy=0.99), Wish(ratio=10)]
)
def test_every_module_keeps_what_was_asked_for_and_no_more(lora, tmp_path, wish):
    path, told = run(lora, tmp_path / "small.safetensors", wish)
    before, after = files.load(lora).pairs, files.load(path).pairs
    wanted, found = making.deltas(before), making.deltas(after)
    ranks, alphas = set(), set()
    assert found.keys() == wanted.keys() and len(found) == 62
    for name, value in wanted.items():
        component, _, module = name.partition(".")
        pair = after[component][module]
        values = torch.linalg.svdvals(value)[:8]
        energy = values.square().cumsum(0) / values.square().sum()
        smallest = 8
        if wish.energy is not None:
            smallest = int((energy < wish.energy).sum()) + 1
        if wish.ratio is not None:
            smallest = int((values >= values[0] / wish.ratio).sum())
        assert pair.rank == min(smallest, wish.rank or 8), name
        lost = float(values[pair.rank :].square().sum().sqrt())
        assert float((found[name] - value).norm()) == pytest.approx(lost, rel=1e-4, abs=1e-5)
        ranks.add(pair.rank)
        alphas.add(pair.alpha)
    # Every reader, diffusers too, reads mixed ranks right where there is one alpha.
    assert len(alphas) == 1 and (len(ranks) > 1) is (wish != Wish(rank=3))
    assert told.codes == ["lora.resized", "lora.kept", "lora.wrote"]
    assert path.stat().st_size < lora.stat().st_size


def test_mixed_ranks_are_read_right_by_diffusers(lora, tmp_path):
    path, _ = run(lora, tmp_path / "small.safetensors", Wish(energy=0.9999))
    assert len({pair.rank for part in files.load(path).pairs.values() for pair in part.values()}) > 1
    found = []
    for file in (lora, path):
        modules = networks()
        _pipeline(modules).load_lora_weights(str(file.parent), weight_name=file.name)
        found.append(outputs(modules))
    assert difference(*found) < 0.05 * difference(found[0], outputs(networks()))


def test_the_full_rank_is_the_same_update(lora, tmp_path):
    path, told = run(lora, tmp_path / "same.safetensors", Wish(rank=8))
    wanted, found = making.deltas(files.load(lora).pairs), making.deltas(files.load(path).pairs)
    assert all(float((found[n] - v).norm()) <= 1e-6 * float(v.norm()) for n, v in wanted.items())
    assert "100 % of the energy" in told[1]


def test_number_format_and_header_are_kept(lora, tmp_path):
    making.kohya(lora, files.load(lora).pairs, dtype=torch.float16)
    path, _ = run(lora, tmp_path / "small.safetensors", Wish(rank=2))
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    meta = files.load(path).meta
    assert (meta.trigger, meta.steps, meta.base_hash) == ("in tiny style", 70, "ab" * 32)
    assert meta.training["learning_rate"] == "0.0003" and meta.name == "small"
    assert meta.training["training_comment"] == "resized from tiny style, rank 8"


def test_a_language_model_stays_a_folder_with_one_rank(tmp_path):
    from tests.adapters import language
    from tests.test_exporting import trained

    base = language.save_base(tmp_path / "base")
    lora = trained(tmp_path / "lora", base, rank=4)
    path, told = run(lora, tmp_path / "small", Wish(rank=2), base=str(base))
    assert {pair.rank for pair in files.load(path).pairs["language_model"].values()} == {2}
    assert told.codes[-1] == "lora.outputs_near" and "%" in told[-1]


def test_a_loha_becomes_a_plain_lora(tmp_path):
    from tests.lora_tools.test_merge import lycoris

    lora = lycoris(tmp_path / "loha.safetensors", "loha")
    with pytest.raises(ConfigError, match="name the base with --base"):
        run(lora, tmp_path / "x.safetensors", Wish(rank=4))


def test_refusals(lora, tmp_path):
    out = tmp_path / "x.safetensors"
    with pytest.raises(ConfigError, match="How small is not said"):
        run(lora, out, Wish())
    with pytest.raises(ConfigError, match=r"style\.safetensors has rank 8, so rank 9 would add nothing"):
        run(lora, out, Wish(rank=9))
    assert not out.exists()
