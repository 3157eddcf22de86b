"""Losses that are not finite, and what the policies make of them."""

from __future__ import annotations

import pytest
import torch

from lora_scripts.config.load import from_mapping
from lora_scripts.contracts import Loss
from lora_scripts.errors import NumericsError
from lora_scripts.events import Advised, Command, RolledBack, Skipped, Stepped
from lora_scripts.train import checkpoint, state
from lora_scripts.train.listeners.advice import Advice
from lora_scripts.train.listeners.save import Save
from lora_scripts.train.recovery import ROLL_BACK, SKIP, Recovery
from tests.train.toy import ToyObjective, build, weights


class Broken(ToyObjective):
    """Not finite in the given steps, whenever they are taken."""

    def __init__(self, steps, rows=slice(None), times=10**6):
        super().__init__()
        self.steps, self.rows, self.times, self.trainer = set(steps), rows, times, None

    def loss(self, family, batch, *, quantile=None):
        made = super().loss(family, batch, quantile=quantile)
        if self.trainer.done + 1 in self.steps and self.times > 0 and "v3" in batch.ids:
            self.times -= 1
            return Loss(made.total * float("nan"))
        return made


def broken(folder, steps, policy, limit=2, times=10**6, **more):
    """A toy run that saves every step, with a recovery as `assembly` puts it together."""
    objective = Broken(steps, times=times)
    trainer, events, hub = build(folder, objective=objective, batch_size=1, **more)
    # Every step of the toy holds "v3" only where its shuffle says so: make it hold for all.
    objective.trainer = trainer
    recovery = Recovery(policy, limit, hub.emit)
    recovery.newest = lambda: checkpoint.load_newest(folder / "saved", lambda code, params: None)
    trainer.recover = recovery
    hub.listeners.append(
        Save(
            folder / "saved",
            range(100),
            None,
            lambda: state.capture(trainer, {"recovery": recovery.state_dict()}),
            lambda staged, step: None,
            hub.emit,
        )
    )
    return trainer, events, recovery


def steps_with(trainer, name: str) -> list[int]:
    """The steps, from 1, that an example is part of."""
    ids = [{name for batch in trainer.batches(step) for name in batch.ids} for step in range(trainer.course.total)]
    return [step + 1 for step, found in enumerate(ids) if name in found]


def test_f54_a_loss_that_is_not_finite_stops_before_the_update_and_names_its_examples(tmp_path):
    plain, _, _ = build(tmp_path, batch_size=1)
    bad = steps_with(plain, "v3")[1]
    trainer, events, _ = broken(tmp_path, [bad], "stop")
    with pytest.raises(NumericsError) as caught:
        trainer.fit()
    assert caught.value.exit_code == 5 and f"step {bad}" in str(caught.value)
    assert caught.value.params["ids"] == "v3"
    last = checkpoint.load_newest(tmp_path / "saved", lambda code, params: None)
    assert last.step == bad - 1 and torch.equal(weights(trainer), weights(restored(tmp_path, last)))
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, bad))


def restored(folder, found):
    trainer, _, _ = build(folder, batch_size=1)
    state.restore(trainer, found)
    return trainer


def test_f55_a_loss_scale_that_overflows_is_lowered_and_the_step_taken_again(tmp_path):
    plain, _, _ = build(tmp_path, dtype=torch.float32, total=4, max_norm=None, objective=Large())
    plain.fit()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**80)
    more = {"scaler": scaler, "max_norm": None, "objective": Large()}
    trainer, events, _ = build(tmp_path, dtype=torch.float32, total=4, **more)
    trainer.fit()
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]
    assert scaler.get_scale() < 2.0**80
    assert trainer.done == 4 and (weights(trainer) - weights(plain)).abs().max() < 1e-6


def test_f55_a_scale_that_never_fits_ends_in_words(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer, _, _ = build(tmp_path, dtype=torch.float32, total=4, scaler=scaler)
    before = weights(trainer).clone()
    # A finite loss whose gradient is not: no scale helps.
    trainer.gradients.objective = Steep()
    with pytest.raises(NumericsError, match="float16 at step 1"):
        trainer.fit()
    assert trainer.done == 0 and torch.equal(weights(trainer), before)


class Large(ToyObjective):
    def loss(self, family, batch, *, quantile=None):
        return Loss(100 * super().loss(family, batch, quantile=quantile).total)


class Steep(ToyObjective):
    def loss(self, family, batch, *, quantile=None):
        made = super().loss(family, batch, quantile=quantile)
        return Loss(made.total + (family.layer.weight * 0).sum().abs().sqrt())


def test_f56_steps_that_are_not_finite_are_skipped_until_the_limit(tmp_path):
    plain, _, _ = build(tmp_path, batch_size=1)
    bad = steps_with(plain, "v3")[:2]
    trainer, events, _ = broken(tmp_path, bad, SKIP)
    trainer.fit()
    skipped = [event for event in events if isinstance(event, Skipped)]
    assert [event.step for event in skipped] == bad and {event.ids for event in skipped} == {"v3"}
    assert trainer.done == 10 and torch.isfinite(weights(trainer)).all()
    taken = [event.step for event in events if isinstance(event, Stepped)]
    assert sorted([*taken, *bad]) == list(range(1, 11))


def test_f56_a_streak_stops_the_run_with_advice(tmp_path):
    class Always(Broken):
        def loss(self, family, batch, *, quantile=None):
            made = ToyObjective.loss(self, family, batch, quantile=quantile)
            return Loss(made.total * float("nan")) if self.trainer.done >= 3 else made

    trainer, _, recovery = broken(tmp_path, [], SKIP, limit=2)
    objective = Always([])
    objective.trainer, trainer.gradients.objective = trainer, objective
    with pytest.raises(NumericsError) as caught:
        trainer.fit()
    assert "step 6" in str(caught.value) and "learning_rate" in str(caught.value) and recovery.times == 2
    assert checkpoint.load_newest(tmp_path / "saved", lambda code, params: None).step == 5


def test_skipping_is_the_same_after_a_resume(tmp_path):
    plain, _, _ = build(tmp_path, batch_size=1)
    bad = steps_with(plain, "v3")[:2]
    whole, _, _ = broken(tmp_path / "whole", bad, SKIP)
    whole.fit()
    first, _, _ = broken(tmp_path / "first", bad, SKIP)
    first.emit = stopping(first.emit, bad[0])
    first.gradients.emit = first.emit
    first.fit()
    second, _, recovery = broken(tmp_path / "first", bad, SKIP)
    found = checkpoint.load_newest(tmp_path / "first/saved", lambda code, params: None)
    state.restore(second, found)
    recovery.load_state_dict(found.facts["recovery"])
    second.fit()
    assert found.step == bad[0] + 1 and torch.equal(weights(second), weights(whole))


def stopping(emit, step):
    return lambda event: emit(event) | ({Command.STOP} if isinstance(event, Stepped) and event.step > step else set())


def test_f64_rolling_back_goes_on_with_half_the_rate(tmp_path):
    plain, events, _ = build(tmp_path, batch_size=1)
    plain.fit()
    bad = steps_with(plain, "v3")[1]
    rates = {event.step: event.rates["layer"] for event in events if isinstance(event, Stepped)}
    trainer, events, _ = broken(tmp_path, [bad], ROLL_BACK, times=1)
    trainer.fit()
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert (back.step, back.failed, back.factor) == (bad - 1, bad, 0.5)
    after = {event.step: event.rates["layer"] for event in events if isinstance(event, Stepped) and event.step >= bad}
    assert after == {step: rate / 2 for step, rate in rates.items() if step >= bad} and trainer.done == 10


def test_f64_rolling_back_forever_stops(tmp_path):
    plain, _, _ = build(tmp_path, batch_size=1)
    bad = steps_with(plain, "v3")[1]
    trainer, events, _ = broken(tmp_path, [bad], ROLL_BACK, limit=2)
    with pytest.raises(NumericsError):
        trainer.fit()
    assert [event.factor for event in events if isinstance(event, RolledBack)] == [0.5, 0.25]


def test_f64_a_jump_of_the_loss_is_told_with_both_numbers():
    said = []
    advice = Advice(said.append)
    for step in range(1, 61):
        advice(Stepped(step, 1, 0.1 if step <= 55 else 1.0, {}, 1.0, 1.0, 0.1, 1))
    assert [type(event) for event in said] == [Advised] and said[0].code == "train.advice_jump"
    assert said[0].params == {"now": "0.46", "before": "0.1"}


def test_a_flat_loss_is_told():
    said = []
    advice = Advice(said.append)
    for step in range(1, 301):
        advice(Stepped(step, 1, 0.5, {}, 1.0, 1.0, 0.1, 1))
    assert [event.code for event in said] == ["train.advice_flat"]


def test_f58_an_export_with_infinity_is_refused_and_names_the_tensor(tmp_path):
    from lora_scripts import registry
    from tests.adapters.networks import adapter

    made = adapter()
    component, path = next((c, p) for c, pairs in made.pairs.items() for p in pairs)
    made.pairs[component][path].up[0, 0] = float("inf")
    with pytest.raises(NumericsError, match=path.split(".")[-1]):
        registry.load("exporters", "kohya").export(made, tmp_path / "broken.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_policies_are_keys_of_the_config_and_wrong_ones_are_refused():
    values = {"train_data_dir": "d", "base_model": "b", "output_dir": "o"}
    assert from_mapping(values).not_finite == "stop"
    assert from_mapping({**values, "not_finite": "roll_back"}).not_finite_limit == 3
    from lora_scripts.errors import ConfigError

    with pytest.raises(ConfigError, match="not_finite"):
        from_mapping({**values, "not_finite": "ignore"})
