"""The loop: exact under any split, resumable at any step, and it stops before a broken update."""

from __future__ import annotations

import pytest
import torch

from lora_scripts.errors import CheckpointError, LoraScriptsError, NumericsError
from lora_scripts.events import Command, EpochEnded, Finished, Started, Stepped
from lora_scripts.train import checkpoint, state
from tests.train.toy import ToyObjective, build, weights


@pytest.mark.parametrize("groups", [1, 3])
def test_three_splits_of_one_batch_give_equal_weights(tmp_path, groups):
    results = []
    for batch_size in (4, 2, 1):
        trainer, _, _ = build(tmp_path, batch_size=batch_size, groups=groups, total=5)
        start = weights(trainer).clone()
        trainer.fit()
        results.append(weights(trainer))
    assert (results[0] - start).abs().max() > 1e-3
    assert max((result - results[0]).abs().max() for result in results) < 1e-10


def test_events_come_in_order_with_true_numbers(tmp_path):
    trainer, events, _ = build(tmp_path, total=6)
    trainer.fit()
    kinds = [type(event) for event in events]
    assert kinds[0] is Started and kinds[-1] is Finished
    steps = [event for event in events if isinstance(event, Stepped)]
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event.epoch for event in steps] == [1, 1, 1, 2, 2, 2]
    assert [event.rates["layer"] for event in steps] == pytest.approx([1e-2 / (1 + i / 10) for i in range(6)])
    assert all(event.gradient_norm > 0 and event.update_norm > 0 and event.memory > 0 for event in steps)
    ended = [event for event in events if isinstance(event, EpochEnded)]
    assert [event.epoch for event in ended] == [1, 2]
    assert ended[0].loss == pytest.approx(sum(event.loss for event in steps[:3]) / 3)


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 9])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stop):
    """Dropout, averages and moments included; through the files of a real checkpoint."""
    whole, _, _ = build(tmp_path, dropout=0.3, average=0.9)
    whole.fit(whole.batches.largest())
    first, _, hub = build(tmp_path, dropout=0.3, average=0.9)
    hub.listeners.append(lambda e: Command.STOP if isinstance(e, Stepped) and e.step == stop else None)
    assert first.fit().stopped
    checkpoint.write(tmp_path / "ck", state.capture(first, {}), lambda folder: None)
    second, _, _ = build(tmp_path, dropout=0.3, average=0.9)
    torch.rand(17)
    state.restore(second, checkpoint.load_newest(tmp_path / "ck", lambda code, params: None))
    assert second.done == stop
    second.fit(second.batches.largest())
    assert torch.equal(weights(second), weights(whole))
    assert all(torch.equal(a, b) for a, b in zip(second.average.values, whole.average.values, strict=True))


def test_restoring_less_than_everything_gives_other_bits(tmp_path):
    """The test above can fail: without the moments the result differs."""
    whole, _, _ = build(tmp_path)
    whole.fit()
    first, _, hub = build(tmp_path)
    hub.listeners.append(lambda e: Command.STOP if isinstance(e, Stepped) and e.step == 5 else None)
    first.fit()
    saved = state.capture(first, {})
    second, _, _ = build(tmp_path)
    state.restore(second, saved)
    second.optimizer.state.clear()
    second.fit()
    assert not torch.equal(weights(second), weights(whole))


def test_a_loss_that_is_not_finite_changes_nothing_and_names_the_examples(tmp_path):
    trainer, _, _ = build(tmp_path, batch_size=2, objective=ToyObjective(broken_at=7))
    for step in range(3):
        trainer.step(trainer.batches(step))
    before = weights(trainer).clone()
    with pytest.raises(NumericsError) as caught:
        trainer.step(trainer.batches(3))
    assert torch.equal(weights(trainer), before)
    assert caught.value.exit_code == 5 and "step 4" in str(caught.value) and "v" in caught.value.params["ids"]


def test_rehearsal_leaves_no_trace(tmp_path):
    plain, _, _ = build(tmp_path)
    plain.fit()
    rehearsed, _, _ = build(tmp_path)
    rehearsed.fit(rehearsed.batches.largest())
    assert torch.equal(weights(plain), weights(rehearsed))


def test_filling_the_cache_covers_every_epoch(tmp_path):
    trainer, _, _ = build(tmp_path, total=12)
    told = []
    filled = trainer.batches.fill(4, tell=lambda part, done, total: told.append((part, done, total)))
    assert filled.made == len(trainer.family.encoded) and filled.reused == 0 and told[-1][1] == told[-1][2]
    trainer.fit()
    assert len(trainer.family.encoded) == filled.made
    again, _, _ = build(tmp_path, total=12)
    assert again.batches.fill(4, tell=lambda *_: None).reused == filled.made and again.family.encoded == []


def stop_at(step: int):
    return lambda event: Command.STOP if isinstance(event, Stepped) and event.step == step else None


def test_a_run_that_ends_inside_an_epoch_tells_that_epoch(tmp_path):
    trainer, events, _ = build(tmp_path, total=5)
    trainer.fit()
    ended = [event for event in events if isinstance(event, EpochEnded)]
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert [(event.epoch, event.step) for event in ended] == [(1, 3), (2, 5)]
    assert ended[-1].loss == pytest.approx((losses[3] + losses[4]) / 2) and events[0].epochs == 2


@pytest.mark.parametrize("stop", [2, 3])
def test_the_mean_loss_of_an_epoch_survives_a_stop(tmp_path, stop):
    """Also where a checkpoint is written at its end, before the epoch is told about."""

    def epochs(events):
        return [event for event in events if isinstance(event, EpochEnded) and event.step > 3]

    whole, told, _ = build(tmp_path, total=9)
    whole.fit()
    first, _, hub = build(tmp_path, total=9)
    saved = []
    hub.listeners.append(lambda e: saved.append(state.capture(first, {})) if isinstance(e, Stepped) else None)
    hub.listeners.append(stop_at(stop))
    first.fit()
    second, again, _ = build(tmp_path, total=9)
    state.restore(second, saved[-1])
    second.fit()
    assert len(epochs(told)) == 2 and epochs(again) == epochs(told)


def test_buffers_are_saved_and_put_back(tmp_path):
    kept = {"layer": {"frozen": torch.arange(3.0)}}
    first, _, hub = build(tmp_path, buffers=kept)
    hub.listeners.append(stop_at(2))
    first.fit()
    stored = state.capture(first, {})
    assert torch.equal(stored.tensors["buffer/layer/frozen"], torch.arange(3.0))
    live = torch.zeros(3)
    second, _, _ = build(tmp_path, buffers={"layer": {"frozen": live}})
    state.restore(second, stored)
    assert torch.equal(live, torch.arange(3.0))
    for other in ({}, {"layer": {"frozen": torch.zeros(4)}}, {"layer": {"other": torch.zeros(3)}}):
        with pytest.raises(CheckpointError, match="frozen"):
            state.restore(build(tmp_path, buffers=other)[0], stored)


def test_a_checkpoint_of_the_first_format_is_still_read(tmp_path):
    """Its groups named no tensors, and JSON had made lists of their tuples."""
    whole, _, _ = build(tmp_path)
    whole.fit()
    first, _, hub = build(tmp_path)
    hub.listeners.append(stop_at(4))
    first.fit()
    new = state.capture(first, {})
    groups = [
        {key: value["tuple"] if isinstance(value, dict) else value for key, value in group.items() if key != "params"}
        for group in new.facts["optimizer_groups"]
    ]
    facts = {key: value for key, value in new.facts.items() if key != "optimizer_on_cpu"}
    second, _, _ = build(tmp_path)
    state.restore(second, checkpoint.State(4, new.tensors, {**facts, "optimizer_groups": groups}))
    second.fit()
    assert torch.equal(weights(second), weights(whole))


class Hoarder(torch.optim.SGD):
    """An optimizer that keeps a bit of everything."""

    def fill(self) -> None:
        shared = torch.arange(4)
        for number, group in enumerate(self.param_groups):
            group |= {"count": number, "shared": shared, "limit": float("inf"), "names": ["a", "b"], "pair": (1, 2.5)}
            for tensor in group["params"]:
                self.state[tensor] = {
                    "step": 3,
                    "levels": [torch.full((2,), 0.1, dtype=torch.bfloat16), {"deep": (torch.ones(1), None)}],
                    "shared": shared,
                    "eight": torch.tensor([1, 255], dtype=torch.uint8),
                    "empty": torch.zeros(0),
                    "on": True,
                    "none": None,
                }


def hoarding(folder):
    trainer, _, _ = build(folder)
    groups = [{k: group[k] for k in ("params", "lr", "component")} for group in trainer.optimizer.param_groups]
    trainer.optimizer = Hoarder(groups)
    return trainer


def test_everything_an_optimizer_keeps_comes_back_as_it_was(tmp_path):
    first = hoarding(tmp_path)
    first.optimizer.fill()
    checkpoint.write(tmp_path / "ck", state.capture(first, {}), lambda folder: None)
    second = hoarding(tmp_path)
    state.restore(second, checkpoint.load(tmp_path / "ck", 0))
    names = {"levels", "shared", "eight", "empty", "step", "on", "none"}
    assert len(second.optimizer.state) == 3
    for old, new in zip(first.tensors, second.tensors, strict=True):
        was, now = first.optimizer.state[old], second.optimizer.state[new]
        assert was.keys() == now.keys() == names
        assert (now["step"], now["on"], now["none"]) == (3, True, None) and now["empty"].shape == (0,)
        assert torch.equal(now["levels"][0], was["levels"][0]) and now["levels"][0].dtype == torch.bfloat16
        deep = now["levels"][1]["deep"]
        assert type(deep) is tuple and torch.equal(deep[0], torch.ones(1)) and deep[1] is None
        assert now["eight"].dtype == torch.uint8 and now["eight"].tolist() == [1, 255]
    groups = second.optimizer.param_groups
    assert [group["count"] for group in groups] == [0, 1]
    assert groups[0]["limit"] == float("inf") and groups[0]["pair"] == (1, 2.5) and groups[0]["names"] == ["a", "b"]
    everywhere = [group["shared"] for group in groups] + [s["shared"] for s in second.optimizer.state.values()]
    assert len({id(tensor) for tensor in everywhere}) == 1 and everywhere[0].dtype == torch.int64


@pytest.mark.parametrize("value", [object(), {1: 2}, torch.nn.Parameter(torch.ones(1)), {1, 2}, [b"x"]])
def test_what_a_checkpoint_cannot_hold_is_told(tmp_path, value):
    trainer = hoarding(tmp_path)
    trainer.optimizer.fill()
    trainer.optimizer.state[trainer.tensors[0]]["strange"] = value
    with pytest.raises(LoraScriptsError, match="strange"):
        state.capture(trainer, {})


def test_another_order_of_tensors_is_refused(tmp_path):
    stored = state.capture(build(tmp_path)[0], {})
    moved, _, _ = build(tmp_path)
    moved.optimizer.param_groups[0]["params"].reverse()
    with pytest.raises(CheckpointError, match="layer/"):
        state.restore(moved, stored)
