"""May two LoRAs be used together, and which way do they pull?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_scripts import messages
from lora_scripts.lora_tools import sources
from lora_scripts.lora_tools.check_compat import check, overlap
from tests.adapters import language
from tests.adapters.networks import networks
from tests.lora_tools import making


def write(path: Path, pairs: dict, **header: str) -> sources.Named:
    return sources.Named(making.kohya(path, pairs, header=making.HEADER | header))


@pytest.fixture
def pairs() -> dict:
    live = networks()
    return making.random_pairs(live["unet"], live["text_encoder"])


def times(pairs: dict, factor: float) -> dict:
    return {
        c: {m: making.LoraPair(pair.down, pair.up * factor, pair.alpha) for m, pair in part.items()}
        for c, part in pairs.items()
    }


def run(named: list[sources.Named], base: str = "") -> tuple[list[str], bool]:
    checks = list(check(named, base))
    return [messages.text(c.code, **c.params) for c in checks], all(c.is_good for c in checks)


@pytest.mark.parametrize(("factor", "words"), [(0.5, "pull in the same direction"), (-2, "pull against each other")])
def test_the_same_update_and_its_opposite(pairs, tmp_path, factor, words):
    one = write(tmp_path / "one.safetensors", pairs)
    other = write(tmp_path / "other.safetensors", times(pairs, factor))
    said, fits = run([one, other])
    assert fits and words in said[-1] and f"cosine {factor / abs(factor):.2f}" in said[-1] and "100 %" in said[-1]
    assert "62 modules are changed by both, 0 by one alone, 0 by other alone" in said[-2]
    assert "trained on the same weights" in said[-3]


def test_unrelated_ones_do_not_disturb_each_other(pairs, tmp_path):
    live = networks()
    one = write(tmp_path / "one.safetensors", pairs)
    unrelated = making.random_pairs(live["unet"], rank=2, seed=77, only="attn1")
    other = write(tmp_path / "other.safetensors", unrelated, ss_base_weights_hash="cd" * 32)
    said, fits = run([one, other])
    assert fits and "hardly disturb" in said[-1] and "trained on different weights" in said[-3]
    assert "46 by one alone, 0 by other alone" in said[-2]


def test_the_cosine_is_that_of_the_matrices(pairs, tmp_path):
    live = networks()
    mixed = making.random_pairs(live["unet"], seed=5)
    for module, pair in mixed["unet"].items():
        own = pairs["unet"][module]
        down, up = torch.cat([own.down, pair.down]), torch.cat([own.up, 0.7 * pair.up], dim=1)
        mixed["unet"][module] = making.LoraPair(down, up, 8.0)
    opened = sources.open_all([write(tmp_path / "a.safetensors", pairs), write(tmp_path / "b.safetensors", mixed)])
    first, second = (making.deltas(one.adapter.pairs) for one in opened)
    dot = sum(float((first[name] * second[name]).sum()) for name in second)
    norms = [sum(float(d.square().sum()) for d in part.values()) ** 0.5 for part in (first, second)]
    found = overlap(*opened)
    assert found.cosine == pytest.approx(dot / (norms[0] * norms[1]), rel=1e-9)
    assert 0.3 < found.cosine < 0.95 and (found.both, found.first, found.second) == (52, 10, 0)
    inside = sum(float(first[name].square().sum()) for name in second) / norms[0] ** 2
    assert found.shared == pytest.approx(inside, rel=1e-6)


def test_other_families_and_sizes_are_told(pairs, tmp_path):
    from tests.test_exporting import trained

    one = write(tmp_path / "one.safetensors", pairs)
    text = sources.Named(trained(tmp_path / "text", language.save_base(tmp_path / "base")))
    said, fits = run([one, text])
    assert not fits and "one and text cannot be used together" in said[-1] and "LLM" in said[-1]
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    small = {"unet": {module: making.LoraPair(torch.ones(4, 5), pairs["unet"][module].up, 1.0)}}
    said, fits = run([one, write(tmp_path / "small.safetensors", small)])
    assert not fits and f"1 modules have other sizes, such as unet.{module}" in said[-1]


def test_against_a_base(pairs, tmp_path):
    from tests import tiny

    folder = tiny.tiny_sd_folder(tmp_path / "base")
    fitting = making.random_pairs(tiny.parts()["unet"])
    said, fits = run([write(tmp_path / "one.safetensors", fitting)], str(folder))
    assert fits and "all 52 modules are in base" in said[2]
    said, fits = run([write(tmp_path / "one.safetensors", fitting)], str(language.save_base(tmp_path / "text")))
    assert not fits and "is of another family" in said[-1]
