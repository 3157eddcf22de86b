"""A full memory: smaller micro-batches, the same steps, the same result; and a preview that costs nothing."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import app
from lora_scripts.config.load import from_mapping
from lora_scripts.errors import MachineError
from lora_scripts.events import Advised, Command, Shrunk, Stepped
from lora_scripts.objectives import denoise
from lora_scripts.train import checkpoint, gradients, state
from tests import tiny
from tests.train.toy import ToyObjective, build, weights


class Small(ToyObjective):
    """A memory for so many examples, from some step on."""

    def __init__(self, room: int, since: int = 0, error=torch.OutOfMemoryError):
        super().__init__()
        self.room, self.since, self.error, self.trainer, self.sizes = room, since, error, None, []

    def loss(self, family, batch, *, quantile=None):
        if len(batch.ids) > self.room and self.trainer.done >= self.since:
            # Something is in the gradients already, as after a backward pass that got half way.
            family.layer.weight.grad = torch.ones_like(family.layer.weight)
            raise self.error("out of memory: tried to allocate 2 GiB")
        self.sizes.append(len(batch.ids))
        return super().loss(family, batch, quantile=quantile)


def small(folder, room, since=0, error=torch.OutOfMemoryError, **more):
    objective = Small(room, since, error)
    trainer, events, hub = build(folder, objective=objective, **more)
    objective.trainer = trainer
    return trainer, events, hub


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_f61_full_at_the_first_step_gives_the_bits_of_a_run_that_began_smaller(tmp_path, error):
    """Dropout and averages included."""
    begun, _, _ = build(tmp_path, batch_size=2, dropout=0.3, average=0.9)
    begun.fit(begun.batches.largest())
    trainer, events, _ = small(tmp_path, 2, error=error, batch_size=4, dropout=0.3, average=0.9)
    trainer.fit()
    assert [(e.before, e.after) for e in events if isinstance(e, Shrunk)] == [(4, 2)]
    assert torch.equal(weights(trainer), weights(begun)) and max(trainer.gradients.objective.sizes) == 2
    assert all(torch.equal(a, b) for a, b in zip(trainer.average.values, begun.average.values, strict=True))


def test_f61_full_later_is_equal_within_rounding(tmp_path):
    plain, _, _ = build(tmp_path, batch_size=4)
    plain.fit()
    trainer, events, _ = small(tmp_path, 1, since=5, batch_size=4)
    trainer.fit()
    shrunk = [event for event in events if isinstance(event, Shrunk)]
    assert shrunk[-1].after == 1 and shrunk[0].step >= 5
    distance = (weights(trainer) - weights(plain)).abs().max() / weights(plain).abs().max()
    assert 0 < distance < 1e-12


def test_f61_the_rehearsal_finds_it_before_the_first_step(tmp_path):
    trainer, events, _ = small(tmp_path, 2, batch_size=4)
    trainer.fit(trainer.batches.largest())
    kinds = [type(event).__name__ for event in events]
    assert kinds.index("Shrunk") < kinds.index("Stepped") and kinds.count("Shrunk") == 1


def test_f61_a_resumed_run_remembers_the_size_that_fits(tmp_path):
    begun, _, _ = build(tmp_path, batch_size=2, dropout=0.3)
    begun.fit()
    first, _, hub = small(tmp_path, 2, batch_size=4, dropout=0.3)
    hub.listeners.append(lambda e: Command.STOP if isinstance(e, Stepped) and e.step == 4 else None)
    first.fit()
    checkpoint.write(tmp_path / "ck", state.capture(first, {}), lambda folder: None)
    second, events, _ = build(tmp_path, batch_size=4, dropout=0.3)
    state.restore(second, checkpoint.load_newest(tmp_path / "ck", lambda code, params: None))
    assert second.batches.batch_size == 2
    second.fit()
    assert torch.equal(weights(second), weights(begun)) and not [e for e in events if isinstance(e, Shrunk)]


def test_f62_one_example_that_does_not_fit_stops_with_sizes_and_options(tmp_path):
    trainer, _, hub = small(tmp_path, 0, since=3, batch_size=4)
    saved = []
    hub.listeners.append(lambda e: saved.append(state.capture(trainer, {})) if isinstance(e, Stepped) else None)
    with pytest.raises(MachineError) as caught:
        trainer.fit()
    said = str(caught.value)
    assert caught.value.exit_code == 4 and "step 4" in said and "free" in said
    for option in ("gradient_checkpointing", "resolution", "base_precision"):
        assert option in said
    assert saved[-1].step == 3 and trainer.done == 3


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (4) must match the size of tensor b (3)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_a_full_memory(error, full):
    assert gradients.is_full(error) is full


def test_another_error_of_the_loss_is_not_swallowed(tmp_path):
    class Wrong(ToyObjective):
        def loss(self, family, batch, *, quantile=None):
            raise RuntimeError("shapes differ")

    trainer, _, _ = build(tmp_path, objective=Wrong())
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.fit()


@pytest.fixture
def settings(tmp_path, base_folder):
    folder = tmp_path / "pictures"
    tiny.tiny_pictures(folder, 8)
    return {
        "train_data_dir": str(folder),
        "base_model": str(base_folder),
        "lora_rank": 2,
        "steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "cache_dir": str(tmp_path / "cache"),
        "base_precision": "float32",
    }


def run(values, listeners=()):
    return app.train(from_mapping(values), listeners=listeners)


def test_f61_a_whole_run_on_a_base_ends_with_the_same_files(tmp_path, settings, monkeypatch):
    small = {
        **settings,
        "preview": False,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "output_dir": str(tmp_path / "a"),
    }
    expected = load_file(run({**small, "name": "x"}).files["diffusers"])
    true_loss = denoise.Denoise.loss

    def loss(self, family, batch, *, quantile=None):
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true_loss(self, family, batch, quantile=quantile)

    monkeypatch.setattr(denoise.Denoise, "loss", loss)
    events = []
    large = {**small, "batch_size": 4, "gradient_accumulation": 1, "output_dir": str(tmp_path / "b"), "name": "x"}
    outcome = run(large, [events.append])
    found = load_file(outcome.files["diffusers"])
    assert len(expected) > 20 and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    told = [json.loads(line) for line in (tmp_path / "b/events.jsonl").read_text().splitlines()]
    assert [(row["before"], row["after"]) for row in told if row["event"] == "Shrunk"] == [(4, 2)]


def test_f63_a_preview_that_fails_costs_a_sentence_and_no_bit(tmp_path, settings, monkeypatch):
    from lora_scripts.families import sd

    plain = run({**settings, "preview": False, "output_dir": str(tmp_path / "a"), "name": "x"})

    def preview(self, *words, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(type(sd.plugin) if not isinstance(sd.plugin, type) else sd.plugin, "preview", preview)
    events = []
    outcome = run({**settings, "output_dir": str(tmp_path / "b"), "name": "x"}, [events.append])
    assert outcome.files["kohya"].read_bytes() == plain.files["kohya"].read_bytes()
    said = [event for event in events if isinstance(event, Advised) and event.code == "train.preview_failed"]
    assert len(said) == 1 and "9 GiB" in str(said[0].params["reason"])


def test_largest_batch_one_preview_and_one_save_are_tried_before_the_first_step(tmp_path, settings, monkeypatch):
    from lora_scripts.families import sd

    order = []
    family = sd.plugin if isinstance(sd.plugin, type) else type(sd.plugin)
    true_preview, true_loss, true_rehearse = family.preview, denoise.Denoise.loss, checkpoint.rehearse
    monkeypatch.setattr(family, "preview", lambda self, *a, **k: order.append("preview") or true_preview(self, *a, **k))
    monkeypatch.setattr(denoise.Denoise, "loss", lambda self, *a, **k: order.append("loss") or true_loss(self, *a, **k))
    monkeypatch.setattr(checkpoint, "rehearse", lambda *a: order.append("save") or true_rehearse(*a))
    run(
        {**settings, "steps": 2, "output_dir": str(tmp_path / "out")},
        [lambda event: order.append("step") if isinstance(event, Stepped) else None],
    )
    before = order[: order.index("step")]
    assert before.count("save") == before.count("preview") == 1 and before.index("loss") > before.index("save")
    assert not list((tmp_path / "out/checkpoints").glob(".*"))
