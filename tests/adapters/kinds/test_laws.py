"""The laws of adapters, for every kind: what must hold of any update in a live network."""

from __future__ import annotations

import copy

import pytest
import torch

from lora_scripts import registry
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.apply import added
from lora_scripts.adapters.compare import check_finite, compare
from lora_scripts.errors import BaseModelError, NumericsError
from tests.adapters.kinds.cases import CASES, MIXED, MODULES
from tests.adapters.networks import META, flat, networks, outputs, put, shake

LAYOUTS = {"lora": 3, "dora": 3, "loha": 2, "lokr": 2}


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


def test_there_are_four_kinds_in_seven_forms():
    assert registry.names("adapters") == ("dora", "loha", "lokr", "lora")
    assert {one["kind"] for one in CASES.values()} == set(registry.names("adapters")) and len(CASES) == 7
    for name, layouts in LAYOUTS.items():
        tables = registry.load("adapters", name).SUFFIXES
        assert len(tables) == layouts and len({frozenset(table) for table in tables.values()}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_fresh_one_changes_nothing_at_all(case, dtype):
    modules = {name: module.to(dtype) for name, module in networks().items()}
    before = outputs(modules)
    injected = put(modules, MIXED, alpha=6.0, dtype=torch.promote_types(torch.float32, dtype), **case)
    after = outputs(modules)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for group in injected.groups().values() for p in group.values()} == {wanted}


def test_merged_equals_unmerged_at_any_strength_and_comes_back(case):
    modules, plain = networks(), networks()
    base = outputs(plain)
    injected = put(modules, MIXED, alpha=6.0, **case)
    shake(injected)
    made = injected.adapter(META)
    assert len(made) == MODULES and made.meta.kind == case["kind"]
    for strength in (1.0, 0.4, -0.5):
        with injected.scaled(strength):
            live = outputs(modules)
        with added(plain, [(made, strength)]):
            merged = outputs(plain)
        for name in base:
            assert (live[name] - merged[name]).abs().max() < 2e-5
            assert (live[name] - base[name]).abs().max() > 1e-3
    assert all(torch.equal(base[name], output) for name, output in outputs(plain).items())


def test_without_it_the_base_is_the_base(case):
    modules = networks()
    base = outputs(modules)["unet"]
    injected = put(modules, MIXED, alpha=6.0, **case)
    shake(injected)
    full = outputs(modules)["unet"]
    with injected.disabled():
        assert torch.equal(outputs(modules)["unet"], base)
        with injected.scaled(0.5):
            assert torch.equal(outputs(modules)["unet"], base)
    with injected.scaled(0.0):
        assert torch.equal(outputs(modules)["unet"], base)
    with pytest.raises(KeyboardInterrupt), injected.scaled(0.3), injected.disabled():
        raise KeyboardInterrupt
    is_back = torch.equal(outputs(modules)["unet"], full)
    assert is_back and not torch.equal(full, base)
    # Nothing of it is computed: not even values that are broken reach the base.
    with torch.no_grad():
        for parameter in injected.parameters("unet").values():
            parameter.fill_(float("nan"))
    with injected.disabled():
        assert torch.equal(outputs(modules)["unet"], base)


def test_only_its_tensors_get_gradients(case):
    modules = networks()
    injected = put(modules, MIXED, **case)
    shake(injected)
    text = modules["text_encoder"](torch.arange(3, 19)[None]).last_hidden_state
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    modules["unet"](noisy, torch.tensor([5]), encoder_hidden_states=text).sample.square().sum().backward()
    trained = [p for group in injected.groups().values() for p in group.values()]
    known = {id(p) for p in trained}
    others = [p for module in modules.values() for p in module.parameters() if id(p) not in known]
    assert len(known) >= 2 * MODULES and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert len(others) > 100 and not any(p.requires_grad or p.grad is not None for p in others)


def test_first_values_depend_on_seed_and_path_only(case):
    first = put(networks(), MIXED, **case)
    torch.manual_seed(77)
    turned = {name: tuple(reversed(MIXED[name])) for name in reversed(MIXED)}
    second = put(dict(reversed(networks().items())), turned, **case)
    other = put(networks(), MIXED, seed=2, **case)
    for component in first.summary():
        ours, theirs, seeded = (one.parameters(component) for one in (first, second, other))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        drawn = [name for name, tensor in ours.items() if not torch.equal(tensor, seeded[name])]
        # PiSSA's start is the base's, whatever the seed.
        assert bool(drawn) == (case.get("options", {}).get("start") != "pissa")


def test_loading_gives_the_update_back_and_folds_another_scale(case):
    source = put(networks(), MIXED, alpha=8.0, **case)
    shake(source)
    made = source.adapter(META)
    twin = put(networks(), MIXED, alpha=8.0, seed=3, **case)
    twin.load(made)
    compare(twin.adapter(META), made)
    if case.get("options", {}).get("start") != "pissa":
        folded = put(networks(), MIXED, alpha=3.0, seed=3, **case)
        folded.load(made)
        compare(folded.adapter(META), made)
        scales = {pair.scale for pair in flat(folded.adapter(META)).values()}
        assert not scales & {pair.scale for pair in flat(made).values()} - {1.0}


def test_its_copy_is_not_live(case):
    injected = put(networks(), MIXED, **case)
    made = injected.adapter(META)
    kept = {name: copy.deepcopy(dict(update.tensors())) for name, update in flat(made).items()}
    shake(injected)
    for name, update in flat(made).items():
        assert all(torch.equal(tensor, kept[name][role]) for role, tensor in update.tensors().items())
        assert not any(tensor.requires_grad for tensor in update.tensors().values())


def test_a_changed_update_is_noticed(case):
    injected = put(networks(), MIXED, **case)
    shake(injected)
    made = injected.adapter(META)
    plugin = registry.load("adapters", case["kind"])
    component, path = "unet", next(iter(made.pairs["unet"]))
    update = made.pairs[component][path]
    for role in update.tensors():
        for factor, error in ((1 + 3e-5, "differs"), (float("nan"), "differs")):
            tensors = {name: t * factor if name == role else t for name, t in update.tensors().items()}
            wrong = {**made.pairs[component], path: plugin.build(tensors, update.alpha)}
            broken = Adapter({**made.pairs, component: wrong}, META)
            with pytest.raises(NumericsError, match=path.replace(".", r"\.")) as caught:
                compare(broken, made)
            assert error in str(caught.value)
    with pytest.raises(NumericsError, match="finite"):
        check_finite(broken)


def test_another_kind_and_another_rank_are_refused_before_anything_changes(case):
    injected = put(networks(), MIXED, **case)
    shake(injected)
    before = injected.adapter(META)
    other = "loha" if case["kind"] != "loha" else "lora"
    with pytest.raises(BaseModelError) as caught:
        injected.load(put(networks(), MIXED, kind=other).adapter(META))
    assert f"set adapter: {other}" in str(caught.value)
    if case["kind"] != "lokr":
        with pytest.raises(BaseModelError) as caught:
            injected.load(put(networks(), MIXED, **{**case, "options": None}, rank=3).adapter(META))
        assert "rank 3" in str(caught.value) or "start" in str(caught.value)
    compare(injected.adapter(META), before)


def test_an_update_knows_the_size_of_its_weight(case):
    modules = networks()
    named = {
        f"{component}.{path}": layer.weight
        for component, module in modules.items()
        for path, layer in module.named_modules()
        if hasattr(layer, "weight")
    }
    made = flat(put(modules, MIXED, **case).adapter(META))
    for name, update in made.items():
        weight = named.get(name, named.get(name.replace("text_model.", "")))
        assert update.size == (weight.shape[0], weight[0].numel()) and update.delta(weight).shape == weight.shape
    assert len(made) == MODULES


def test_a_base_held_in_8_bits_takes_every_kind(case, monkeypatch):
    from lora_scripts.families import _held

    monkeypatch.setattr(_held, "SMALLEST", 1)
    modules = networks()
    _held.hold(modules["unet"], "fp8")
    base = outputs(modules)["unet"]
    injected = put(modules, {"unet": MIXED["unet"]}, **case)
    assert all(_held.is_held(layer.get_base_layer()) for layer in injected.layers["unet"].values())
    assert torch.equal(outputs(modules)["unet"], base)
    shake(injected)
    assert (outputs(modules)["unet"] - base).abs().max() > 1e-3
    with injected.disabled():
        assert torch.equal(outputs(modules)["unet"], base)
