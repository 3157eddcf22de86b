"""What single kinds have of their own: shapes in files, wholes, zero rows, dropouts, options."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lora_scripts import registry
from lora_scripts.adapters.compare import compare
from lora_scripts.adapters.uniform import settings, uniform
from lora_scripts.errors import BaseModelError
from tests.adapters import language
from tests.adapters.kinds.cases import MIXED, Section
from tests.adapters.networks import META, flat, networks, outputs, put, shake

TO_Q = {"unet": (r"mid_block\..*attn1\.to_q",)}
CONV = "mid_block.resnets.0.conv1"


def test_a_magnitude_has_each_layout_s_own_shape_and_is_read_from_all():
    made = put(networks(), MIXED, kind="dora").adapter(META)
    conv, linear = made.pairs["unet"][CONV], made.pairs["text_encoder"]["text_model.encoder.layers.1.mlp.fc1"]
    shapes = {
        "": [(64,), (64,)],
        "kohya": [(64, 1, 1, 1), (64, 1)],
        "peft": [(1, 64, 1, 1), (64,)],
        "diffusers": [(1, 64, 1, 1), (64,)],
    }
    build = registry.load("adapters", "dora").build
    for layout, wanted in shapes.items():
        for update, shape in zip((conv, linear), wanted, strict=True):
            tensors = update.tensors(layout)
            assert tuple(tensors["magnitude"].shape) == shape
            assert torch.equal(build(tensors, 4.0).magnitude, update.magnitude)
    with pytest.raises(ValueError, match="weight"):
        conv.delta()


def test_dora_refuses_a_layer_with_a_row_of_zeros():
    modules = networks()
    with torch.no_grad():
        modules["unet"].mid_block.resnets[0].conv1.weight[3] = 0
    with pytest.raises(BaseModelError) as caught:
        put(modules, MIXED, kind="dora")
    assert CONV in str(caught.value) and "1 rows" in str(caught.value)
    left = put(networks(), MIXED, kind="dora", rules=[Section(match=r".*conv1", rank=0)])
    assert CONV not in left.module_names()["unet"]


@pytest.mark.parametrize(
    ("rank", "options", "roles"),
    [
        (2, {}, {"w1", "w2_a", "w2_b"}),
        (4, {}, {"w1", "w2"}),
        (64, {}, {"w1", "w2"}),
        (2, {"factor": 4}, {"w1", "w2_a", "w2_b"}),
        (1, {"decompose_both": True}, {"w1_a", "w1_b", "w2_a", "w2_b"}),
    ],
)
def test_the_rank_decides_what_of_lokr_is_whole(rank, options, roles):
    injected = put(networks(), TO_Q, rank=rank, alpha=2.0 * rank, kind="lokr", options=options)
    shake(injected)
    (update,) = flat(injected.adapter(META)).values()
    assert set(update.tensors()) == roles
    (layer,) = injected.layers["unet"].values()
    assert (update.delta() - layer.get_delta_weight("default")).abs().max() < 1e-6
    # Who reads a file without a rank takes a scale of 1.
    assert update.scale == (1.0 if update.is_whole else 2.0)
    if options.get("factor"):
        assert update.w1.shape == (4, 4)


def test_lokr_of_other_factors_is_refused_in_words():
    injected = put(networks(), TO_Q, kind="lokr", rank=2)
    with pytest.raises(BaseModelError) as caught:
        injected.load(put(networks(), TO_Q, kind="lokr", rank=2, options={"factor": 4}).adapter(META))
    assert "w1 4 x 4" in str(caught.value) and "w1 8 x 8" in str(caught.value)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_their_dropouts_act_while_training_only(kind):
    for options in ({"rank_dropout": 0.5}, {"module_dropout": 0.5}):
        modules = networks()
        injected = put(modules, MIXED, kind=kind, options=options)
        shake(injected)
        torch.manual_seed(0)
        seen = {float(outputs(modules)["unet"].sum()) for _ in range(4)}
        assert len(seen) > 1
        for module in modules.values():
            module.eval()
        first = outputs(modules)["unet"]
        assert torch.equal(first, outputs(modules)["unet"])
        plain = networks()
        bare = put(plain, MIXED, kind=kind)
        shake(bare)
        assert torch.equal(first, outputs(plain)["unet"])


def test_options_have_ranges():
    for kind, options in (
        ("lora", {"start": "gaussian"}),
        ("dora", {"start": "pissa"}),
        ("loha", {"rank_dropout": 0.9}),
        ("lokr", {"factor": -2}),
        ("lokr", {"use_tucker": True}),
    ):
        with pytest.raises(ValidationError):
            registry.load("adapters", kind).Config(**options)


@pytest.mark.parametrize(
    ("kind", "options", "ranks"),
    [("lora", {}, {2, 4, 8}), ("lora", {"start": "pissa"}, {4, 8, 16}), ("dora", {}, {2, 4, 8})],
)
def test_pairs_of_many_ranks_become_one_rank_without_changing(kind, options, ranks):
    rules = [Section(match=r".*q_proj", rank=2, alpha=3.0), Section(match=r".*up_proj", rank=8)]
    targets = {"language_model": language.EVERYWHERE}
    injected = put({"language_model": language.model()}, targets, kind=kind, options=options, rules=rules)
    shake(injected)
    made = injected.adapter(META)
    even = uniform(made)
    assert settings(even) == (max(ranks), max(ranks)) and {pair.rank for pair in flat(made).values()} == ranks
    # The filling is left out again on the way back into the run.
    injected.load(even)
    compare(injected.adapter(META), made)
    for module, pair in flat(made).items():
        weight = torch.randn(*pair.size, generator=torch.Generator().manual_seed(1))
        assert (flat(even)[module].delta(weight) - pair.delta(weight)).abs().max() < 1e-6
