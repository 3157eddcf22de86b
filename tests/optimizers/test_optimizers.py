"""Every optimizer learns, obeys each of its options, and goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from lora_scripts import registry
from lora_scripts.events import Command, EpochEnded, Stepped
from lora_scripts.train import checkpoint, state
from tests.train import toy

OPTIMIZERS = registry.names("optimizers")
# Where the toy's sound rate is not AdamW's.
RATES = {"prodigy": 1.0, "lion": 5e-3}
# Six by six numbers are few: without this, none of the toy's moments would be in 8 bits; and a few steps are few to
# find a distance from one millionth.
TOTALS = {"prodigy": 60}
SMALL = {"adamw8bit": {"min_8bit_size": 16}, "prodigy": {"d0": 1e-4}}
# Another value of every option, far enough from the default to show in a few steps.
OTHERS = {
    "beta1": 0.5,
    "beta2": 0.5,
    "beta3": 0.5,
    "epsilon": 0.5,
    "epsilon2": 0.5,
    "weight_decay": 0.5,
    "min_8bit_size": 4096,
    "decay_rate": -0.2,
    "clip_threshold": 0.2,
    "use_bias_correction": False,
    "safeguard_warmup": False,
    "d0": 1e-2,
    "d_coef": 3.0,
    "growth_rate": 1.05,
    "r": 1.0,
    "weight_lr_power": 0.0,
    "momentum": 0.5,
    "nesterov": False,
    "iterations": 2,
}


def build(folder, name, *, options=None, **wishes):
    missing = [package for package in getattr(registry.load("optimizers", name), "NEEDS", {}) if not find_spec(package)]
    if missing:
        pytest.skip(f"{name} needs {missing[0]}, which is not installed")
    wishes = {"dtype": torch.float32, "rate": RATES.get(name, 1e-2), **wishes}
    return toy.build(folder, optimizer=name, options={**SMALL.get(name, {}), **(options or {})}, **wishes)


def stop_at(step: int):
    return lambda event: Command.STOP if isinstance(event, Stepped) and event.step == step else None


def same(first, second) -> None:
    """Two states hold the same tensors, of the same types and bits, and the same facts."""
    assert first.step == second.step and dict(first.facts) == dict(second.facts)
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert tensor.dtype == second.tensors[name].dtype, name
        assert torch.equal(tensor.cpu(), second.tensors[name].cpu()), name


def test_there_are_eight() -> None:
    assert OPTIMIZERS == ("adafactor", "adamw", "adamw8bit", "came", "lion", "muon", "prodigy", "schedule_free")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_lowers_the_loss(tmp_path, name):
    trainer, events, _ = build(tmp_path, name, total=60)
    trainer.fit()
    losses = [event.loss for event in events if isinstance(event, EpochEnded)]
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_killed_and_resumed_it_ends_with_the_same_bits_of_everything(tmp_path, name):
    """Stopped by an exception after several steps, through the files of a real checkpoint; twice in one run."""
    whole, _, _ = build(tmp_path, name, dropout=0.3)
    whole.fit()
    expected = state.capture(whole, {})
    for stop in (1, 3, 8):
        first, _, hub = build(tmp_path, name, dropout=0.3)
        folder = tmp_path / f"stop-{stop}"

        def kill(event, stop=stop, folder=folder, trainer=first):
            if isinstance(event, Stepped) and event.step == stop:
                checkpoint.write(folder, state.capture(trainer, {}), lambda staged: None)
            if isinstance(event, Stepped) and event.step == stop + 1:
                raise KeyboardInterrupt

        hub.listeners.append(kill)
        with pytest.raises(KeyboardInterrupt):
            first.fit()
        second, _, hub = build(tmp_path, name, dropout=0.3)
        state.restore(second, checkpoint.load_newest(folder, lambda code, params: None))
        hub.listeners.append(stop_at(stop + 1))
        assert second.fit().stopped
        third, _, _ = build(tmp_path, name, dropout=0.3)
        state.restore(third, state.capture(second, {}))
        third.fit()
        same(state.capture(third, {}), expected)
        assert torch.equal(toy.weights(third), toy.weights(whole))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_restored_is_what_was_captured(tmp_path, name):
    trainer, _, hub = build(tmp_path, name)
    hub.listeners.append(stop_at(4))
    trainer.fit()
    checkpoint.write(tmp_path / "ck", state.capture(trainer, {"more": 1}), lambda staged: None)
    stored = checkpoint.load(tmp_path / "ck", 4)
    again, _, _ = build(tmp_path, name)
    state.restore(again, stored)
    same(state.capture(again, {"more": 1}), stored)
    moments = [key for key in stored.tensors if key.startswith("optimizer/")]
    assert len(moments) >= 3


def flipped(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    return value * 1.5 + 1 if isinstance(value, int | float) else value


@pytest.mark.parametrize(
    ("name", "keys"), [("prodigy", ("d", "d_max", "step")), ("schedule_free", ("weight_sum", "step"))]
)
def test_the_counts_of_groups_matter(tmp_path, name, keys):
    """The test of resuming can fail: with one such number changed, other weights come out."""
    whole, _, _ = build(tmp_path, name)
    whole.fit()
    first, _, hub = build(tmp_path, name)
    hub.listeners.append(stop_at(4))
    first.fit()
    for key in keys:
        stored = state.capture(first, {})
        for group in stored.facts["optimizer_groups"]:
            group[key] = flipped(group[key])
        second, _, _ = build(tmp_path, name)
        state.restore(second, stored)
        second.fit()
        assert not torch.equal(toy.weights(second), toy.weights(whole)), key


def options() -> list[tuple[str, str]]:
    return [(name, key) for name in OPTIMIZERS for key in registry.load("optimizers", name).Config.model_fields]


def test_every_option_has_another_value() -> None:
    assert len(options()) == 47
    assert {key for _, key in options()} == set(OTHERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_reaches_the_optimizer(tmp_path, name):
    def run(**options):
        trainer, _, _ = build(tmp_path, name, options=options, total=TOTALS.get(name, 20))
        # A rise, as of a warm-up, which some options are about.
        trainer.factor = lambda step: min(1.0, (step + 1) / 5)
        trainer.fit()
        return toy.weights(trainer)

    plain = run()
    assert torch.equal(run(), plain)
    for key in [key for owner, key in options() if owner == name]:
        assert not torch.equal(run(**{key: OTHERS[key]}), plain), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_keep_their_components_and_rates(tmp_path, name):
    trainer, events, _ = build(tmp_path, name, total=1)
    trainer.rates = {"layer": 0.25, "kernel": 0.125}
    trainer.fit()
    assert {group["component"] for group in trainer.optimizer.param_groups} == {"layer", "kernel"}
    assert next(e for e in events if isinstance(e, Stepped)).rates == {"layer": 0.25, "kernel": 0.125}


def test_moments_of_eight_bits_are_eight_bits(tmp_path):
    trainer, _, _ = build(tmp_path, "adamw8bit", total=2)
    trainer.fit()
    stored = state.capture(trainer, {})
    assert stored.tensors["optimizer/state1/layer/weight"].dtype == torch.uint8
    assert stored.tensors["optimizer/state1/layer/bias"].dtype == torch.float32
    shared = [value for key, value in stored.facts["optimizer_scalars"].items() if key.startswith("qmap1/")]
    assert shared == [{"tensor": "optimizer/qmap1/layer/weight"}]


def test_a_vector_and_a_convolution_learn_under_muon(tmp_path):
    trainer, _, _ = build(tmp_path, "muon", total=3)
    before = [tensor.detach().clone() for tensor in trainer.tensors]
    trainer.fit()
    assert sorted(tensor.ndim for tensor in trainer.tensors) == [1, 2, 4]
    assert all((tensor.detach() - old).abs().max() > 1e-3 for tensor, old in zip(trainer.tensors, before, strict=True))
    assert [group["use_muon"] for group in trainer.optimizer.param_groups] == [True, False, True]
