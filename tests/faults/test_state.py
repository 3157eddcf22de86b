"""Everything that the next step depends on is in a checkpoint: each part of it is flipped, and must be missed.

Real checkpoints of real runs; one live run is put back to them again and again. What faults.md lists besides does not
exist here: no generator's state and no place in the data, since every draw is seeded by what it is for.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import app, assembly, registry
from lora_scripts.contracts import Loss
from lora_scripts.data.cache import Cache
from lora_scripts.errors import CheckpointError, LoraScriptsError, NumericsError, Stopped
from lora_scripts.events import Advised, EpochEnded, Skipped, Stepped
from lora_scripts.preparation import prepare
from lora_scripts.train import checkpoint, state
from lora_scripts.train.checkpoint import State
from tests.faults import resuming
from tests.train import toy

STOP, STEPS = 3, 6
# Rates are set anew before every step, from the config.
DERIVED = {"lr"}
# How torch computes, not what; None leaves the choice to it.
IMPLEMENTATIONS = {"foreach", "fused", "capturable", "differentiable"}
RUNS: dict[str, dict[str, Any]] = {
    "adamw": {**resuming.OPTIMIZERS["adamw"], "adapter": {"name": "lora", "start": "pissa"}},
    "schedule_free": resuming.OPTIMIZERS["schedule_free"],
    # A first distance so small that it grows in every step.
    "prodigy": {"optimizer": {"name": "prodigy", "d0": 1e-5, "d_coef": 50}, "learning_rate": 1.0},
    "adamw8bit": resuming.OPTIMIZERS["adamw8bit"],
}
# Kinds of tensors in each, so that none is overlooked.
KINDS = {
    "adamw": {"weight", "buffer", "average", "optimizer/exp_avg", "optimizer/exp_avg_sq", "optimizer/step"},
    "schedule_free": {"weight", "optimizer/exp_avg_sq", "optimizer/z"},
    "prodigy": {"weight", "optimizer/exp_avg", "optimizer/exp_avg_sq", "optimizer/p0", "optimizer/s"},
    "adamw8bit": {"weight"} | {f"optimizer/{slot}" for slot in ("state1", "state2", "absmax1", "absmax2")},
}
# What an optimizer stores and never reads, as it is built here: results of the step before, other modes' settings.
NOT_READ: dict[str, set[str]] = {
    "adamw": set(),
    "schedule_free": {"use_palm", "warmup_steps"},
    "prodigy": {"d_hat", "optimizer/group 0/d_de_nom"},
    "adamw8bit": {"alpha"},
}


def tensors_of(path: Path) -> str:
    """Return the sha256 of a LoRA file's tensors."""
    tensors = load_file(path)
    return hashlib.sha256(
        b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    ).hexdigest()


class Again:
    """A run that can be put back to a state and trained to its end, as often as wanted."""

    def __init__(self, settings: Mapping[str, Any], folder: Path):
        self.folder, made = folder, resuming.config(dict(settings))
        prepared = prepare(made)
        with pytest.raises(Stopped):
            app.train(made, prepared=prepared, listeners=[resuming.stop_at(STOP)])
        self.state = checkpoint.load(made.output_dir / "checkpoints", STOP)
        cache = Cache(Path(made.cache_dir))
        self.run = assembly.build(prepared, assembly.machine(made), cache, "")
        self.run.loader.fill(prepared.plan.epochs, tell=lambda *_: None)
        if self.run.held is not None:
            self.run.held.fill(1, held_out=True, tell=lambda *_: None)
        self.sizes = self.run.loader.batch_size, self.run.loader.budget
        self.loss = self.run.objective.loss
        self.wanted = self.result(self.state)

    def put_back(self, found: State) -> list[Any]:
        """Make the live run that of a state, as `assembly.resume` does; returns where its events will be."""
        run, events = self.run, []
        run.loader.batch_size, run.loader.budget = self.sizes
        run.advice.__init__(run.hub.emit)
        run.recovery.times, run.recovery.last = 0, -1
        run.hub.listeners = [events.append, run.advice, *([run.evaluate, run.best] if run.evaluate else [])]
        # What was refused in the middle of a step leaves gradients.
        run.trainer.optimizer.zero_grad()
        state.restore(run.trainer, found)
        for name, part in run.remembered().items():
            part.load_state_dict(found.facts.get(name))
        return events

    def result(self, found: State) -> tuple[str, list[Any]]:
        """Return the sha256 of the adapter at the end, and what was said on the way."""
        events = self.put_back(found)
        self.run.trainer.fit()
        exporter = registry.load("exporters", self.run.prepared.config.exporters[0])
        path = self.folder / "result.safetensors"
        exporter.export(self.run.adapter(self.run.trainer.done), path)
        told = [(type(e).__name__, e.loss) for e in events if isinstance(e, EpochEnded)]
        told += [(e.code, str(e.params)) for e in events if isinstance(e, Advised)]
        told += [(type(e).__name__, e.step) for e in events if isinstance(e, Skipped)]
        return tensors_of(path), told

    def is_noticed(self, flipped: State) -> bool:
        """Say whether a flipped state is refused, or ends otherwise."""
        try:
            return self.result(flipped) != self.wanted
        except (LoraScriptsError, ValueError, KeyError, IndexError, RuntimeError):
            return True


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, text_base: Path) -> Callable[[str], Again]:
    made: dict[str, Again] = {}

    def get(name: str) -> Again:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            more = {**RUNS[name], "steps": STEPS, "batch_size": 2, "exporters": ["peft"]}
            made[name] = Again(resuming.text(folder, text_base, **more), folder)
        return made[name]

    return get


def flipped(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy with one bit changed: of its largest number the highest of the mantissa."""
    other = tensor.clone()
    flat = other.reshape(-1)
    place = int(flat.float().abs().argmax())
    if not tensor.is_floating_point():
        flat[place] = flat[place] ^ 1
        return other
    bits = {2: (torch.int16, 6), 4: (torch.int32, 22), 8: (torch.int64, 51)}
    dtype, bit = bits[tensor.element_size()]
    flat.view(dtype)[place] ^= 1 << bit
    return other


def kind_of(name: str) -> str:
    depth = 3 if name.startswith("optimizer/group") else 2 if name.startswith("optimizer/") else 1
    return "/".join(name.split("/")[:depth])


@pytest.mark.parametrize("name", RUNS)
def test_a_state_put_back_into_a_used_run_is_whole(name: str, runs):
    """Whatever is flipped below, what comes back afterwards is the run that was never touched."""
    again = runs(name)
    assert again.result(again.state) == again.wanted
    through = resuming.config(
        resuming.text(again.folder, again.run.prepared.base.path, **RUNS[name], batch_size=2, exporters=["peft"]),
        steps=STEPS,
        output_dir=str(again.folder / "through" / "out"),
    )
    resuming.run(through)
    assert tensors_of(through.output_dir / "adapter_model.safetensors") == again.wanted[0]


@pytest.mark.parametrize("name", RUNS)
def test_f41_one_flipped_bit_of_any_kind_of_tensor_is_missed(name: str, runs):
    again = runs(name)
    by_kind: dict[str, str] = {}
    for tensor in again.state.tensors:
        by_kind.setdefault(kind_of(tensor), tensor)
    assert by_kind.keys() >= KINDS[name]
    unnoticed = []
    for kind, tensor in by_kind.items():
        tensors = {**again.state.tensors, tensor: flipped(again.state.tensors[tensor])}
        if not again.is_noticed(replace(again.state, tensors=tensors)):
            unnoticed.append(kind)
    assert set(unnoticed) == {kind for kind in NOT_READ[name] if "/" in kind}
    assert again.result(again.state) == again.wanted


@pytest.mark.parametrize("name", RUNS)
def test_f47_f53_a_kind_of_tensor_that_is_missing_is_refused(name: str, runs):
    again = runs(name)
    for kind in KINDS[name] - {kind for kind in KINDS[name] if kind.startswith("optimizer/")}:
        tensors = {key: tensor for key, tensor in again.state.tensors.items() if kind_of(key) != kind}
        with pytest.raises(CheckpointError, match="tensors differ"):
            state.restore(again.run.trainer, replace(again.state, tensors=tensors))


def changed(value: Any) -> Any:
    """Return another value of the same kind: a number larger, a switch turned."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5 if value else 0.1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [changed(value[0]), *value[1:]]
    ((kind, content),) = value.items()
    return {kind: f"{float(content)}" if kind == "float" else changed(content)} if kind != "float" else 0.5


@pytest.mark.parametrize("name", RUNS)
def test_f41_every_setting_and_count_of_the_optimizer_is_missed(name: str, runs):
    again, facts = runs(name), runs(name).state.facts
    seen, unnoticed = 0, []
    for key, value in facts["optimizer_groups"][0].items():
        if key in DERIVED | IMPLEMENTATIONS or value is None or (isinstance(value, dict) and "tensor" in value):
            continue
        seen += 1
        groups = copy.deepcopy(facts["optimizer_groups"])
        groups[0][key] = value[::-1] if key == "params" else changed(value)
        if not again.is_noticed(replace(again.state, facts={**facts, "optimizer_groups": groups})):
            unnoticed.append(key)
    for slot in {place.split("/")[0]: place for place in facts["optimizer_scalars"]}.values():
        value = facts["optimizer_scalars"][slot]
        if isinstance(value, dict) and "tensor" in value:
            continue
        seen += 1
        scalars = {**facts["optimizer_scalars"], slot: changed(value)}
        if not again.is_noticed(replace(again.state, facts={**facts, "optimizer_scalars": scalars})):
            unnoticed.append(slot)
    assert seen >= 5
    assert set(unnoticed) == {key for key in NOT_READ[name] if "/" not in key}
    assert again.result(again.state) == again.wanted


def break_step(again: Again, step: int) -> Callable[..., Loss]:
    """Return a loss that is not finite in one step."""

    def loss(family: Any, batch: Any, **more: Any) -> Loss:
        made = again.loss(family, batch, **more)
        return Loss(made.total * float("nan")) if again.run.trainer.done + 1 == step else made

    return loss


FACTS = {
    "optimizer": lambda value: "Adagrad",
    "epoch_losses": lambda value: [loss + 1 for loss in value],
    "slowed": lambda value: value / 2,
    "micro_batch": lambda value: [1, value[1]],
}


@pytest.mark.parametrize("fact", FACTS)
def test_f41_a_flipped_fact_of_the_loop_is_missed(fact: str, runs):
    again = runs("adamw")
    other = FACTS[fact](again.state.facts[fact])
    assert again.is_noticed(replace(again.state, facts={**again.state.facts, fact: other}))
    assert again.result(again.state) == again.wanted


@pytest.mark.parametrize("step", [STOP - 1, STOP + 1])
def test_f41_a_flipped_step_is_missed(step: int, runs):
    again = runs("adamw")
    assert again.is_noticed(replace(again.state, step=step))
    assert again.result(again.state) == again.wanted


def test_every_fact_of_a_checkpoint_is_flipped_in_this_file(runs):
    """A new one needs a test of its own here."""
    elsewhere = {"optimizer_groups", "optimizer_scalars", "optimizer_on_cpu", "scaler", "advice", "best", "recovery"}
    assert runs("adamw").state.facts.keys() == FACTS.keys() | elsewhere


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, text_base: Path) -> Again:
    """A run that measures a held-out part after every step, and skips what is not finite."""
    folder = tmp_path_factory.mktemp("measured")
    held = {"enabled": True, "share": 0.25, "every": 1, "answers": 0}
    more = {"validation": held, "not_finite": "skip", "not_finite_limit": 1, "steps": STEPS, "exporters": ["peft"]}
    return Again(resuming.text(folder, text_base, **more), folder)


def test_f41_a_flipped_advice_is_missed(measured: Again):
    """Held-out losses that rose, advice already given, and the losses before a jump."""
    facts = measured.state.facts
    rose = {**facts["advice"], "held": [1e-3, 2e-3, 3e-3]}
    assert measured.is_noticed(replace(measured.state, facts={**facts, "advice": rose}))
    _, told = measured.result(replace(measured.state, facts={**facts, "advice": rose}))
    assert [row[0] for row in told].count("train.advice_rising") == 1
    silent = {**rose, "said": ["train.advice_rising"]}
    _, told = measured.result(replace(measured.state, facts={**facts, "advice": silent}))
    assert "train.advice_rising" not in [row[0] for row in told]
    low = {**facts["advice"], "recent": [1e-3] * 54}
    _, told = measured.result(replace(measured.state, facts={**facts, "advice": low}))
    assert "train.advice_jump" in [row[0] for row in told]
    assert measured.result(measured.state) == measured.wanted


def test_f41_a_flipped_best_step_is_missed(measured: Again):
    """It decides what stays, and what is exported with `use_best`."""
    assert measured.state.facts["best"] is not None
    measured.result(measured.state)
    wanted = measured.run.best.found
    best = {**measured.state.facts["best"], "value": 1e9}
    measured.result(replace(measured.state, facts={**measured.state.facts, "best": best}))
    assert measured.run.best.found != wanted and measured.run.best.found.step <= STOP


def test_f41_flipped_counts_of_skipped_steps_are_missed(measured: Again, monkeypatch: pytest.MonkeyPatch):
    """One step may be skipped running; the state says whether the one before already was."""
    monkeypatch.setattr(measured.run.trainer.gradients.objective, "loss", break_step(measured, STOP + 1))
    _, told = measured.result(measured.state)
    assert ("Skipped", STOP + 1) in told
    already = {"times": 1, "last": STOP}
    with pytest.raises(NumericsError, match="not finite"):
        measured.result(replace(measured.state, facts={**measured.state.facts, "recovery": already}))


def test_f41_a_flipped_loss_scale_is_missed(tmp_path: Path):
    """float16 alone has one: its growth counts steps, and what it grows to overflows elsewhere."""
    made = [toy.build(tmp_path, dtype=torch.float32, scaler=torch.amp.GradScaler("cpu", growth_interval=4))[0]]
    made.append(toy.build(tmp_path, dtype=torch.float32, scaler=torch.amp.GradScaler("cpu", growth_interval=4))[0])
    for _ in range(3):
        made[0].step(made[0].batches(made[0].done))
    found = state.capture(made[0], {})
    state.restore(made[1], found)
    assert made[1].accelerator.scaler.state_dict() == made[0].accelerator.scaler.state_dict()
    for key in ("scale", "_growth_tracker"):
        other = {**found.facts["scaler"], key: found.facts["scaler"][key] + 1}
        state.restore(made[1], replace(found, facts={**found.facts, "scaler": other}))
        assert made[1].accelerator.scaler.state_dict() != found.facts["scaler"]


def test_f47_a_missing_fact_is_named(runs):
    again = runs("adamw")
    for fact in sorted(state.FACTS):
        facts = {key: value for key, value in again.state.facts.items() if key != fact}
        with pytest.raises(CheckpointError) as caught:
            state.restore(again.run.trainer, replace(again.state, facts=facts))
        assert f"lacks {fact}" in str(caught.value) and "init_lora" in str(caught.value)
        assert caught.value.exit_code == 3


def test_f47_a_missing_slot_of_the_optimizer_is_missed(runs):
    """Only the optimizer knows which slots it needs; without one it fails, or starts it anew and ends otherwise."""
    for name in RUNS:
        again = runs(name)
        for kind in {kind_of(key) for key in again.state.tensors if key.startswith("optimizer/")}:
            tensors = {key: tensor for key, tensor in again.state.tensors.items() if kind_of(key) != kind}
            assert again.is_noticed(replace(again.state, tensors=tensors)), (name, kind)


@pytest.mark.parametrize("extra", [False, True])
def test_f53_ten_of_the_tensors_that_differ_are_named(extra: bool, runs):
    again = runs("adamw")
    names = sorted(key for key in again.state.tensors if key.startswith("weight/"))
    assert len(names) > state.MAX_NAMED
    if extra:
        more = {f"{key}.more": again.state.tensors[key] for key in names}
        tensors = {**again.state.tensors, **more}
    else:
        tensors = {key: tensor for key, tensor in again.state.tensors.items() if key not in names}
    with pytest.raises(CheckpointError) as caught:
        state.restore(again.run.trainer, replace(again.state, tensors=tensors))
    sentence = str(caught.value)
    assert f"{len(names)} tensors differ" in sentence and "init_lora" in sentence
    assert sentence.count("language_model/") == state.MAX_NAMED == 10
    assert again.result(again.state) == again.wanted


def test_f45_another_optimizer_or_another_order_is_refused(runs):
    again, facts = runs("adamw"), runs("adamw").state.facts
    with pytest.raises(CheckpointError, match=r"state of Adagrad, the config asks for AdamW.*init_lora"):
        state.restore(again.run.trainer, replace(again.state, facts={**facts, "optimizer": "Adagrad"}))
    groups = copy.deepcopy(facts["optimizer_groups"])
    groups[0]["params"][:2] = groups[0]["params"][1::-1]
    with pytest.raises(CheckpointError, match=r"in another order.*init_lora") as caught:
        state.restore(again.run.trainer, replace(again.state, facts={**facts, "optimizer_groups": groups}))
    assert caught.value.exit_code == 3


def test_f51_a_checkpoint_of_another_device_loads(runs):
    """Tensors are stored without a device; a GPU's checkpoint also says which of them lay on the CPU."""
    for name in RUNS:
        again = runs(name)
        there = [key for key in again.state.tensors if key.endswith("step") or "/step/" in key]
        facts = {**again.state.facts, "optimizer_on_cpu": there}
        assert again.result(replace(again.state, facts=facts)) == again.wanted
        assert all(tensor.device.type == "cpu" for tensor in again.state.tensors.values())


def test_f47_no_generator_has_a_state_to_lose(runs):
    """Every global generator is moved before resuming and in each step: draws depend on seeds only."""
    again = runs("adamw")

    def stir(event: Any) -> None:
        if event is None or isinstance(event, Stepped):
            random.seed(random.random())
            numpy.random.seed(random.randrange(2**31))
            torch.manual_seed(random.randrange(2**31))
            torch.randn(random.randrange(1, 50))

    events = again.put_back(again.state)
    stir(None)
    again.run.hub.listeners.append(stir)
    again.run.trainer.fit()
    weights = torch.cat([tensor.detach().flatten() for tensor in again.run.trainer.tensors])
    again.result(again.state)
    assert torch.equal(weights, torch.cat([tensor.detach().flatten() for tensor in again.run.trainer.tensors]))
    assert sum(isinstance(event, Stepped) for event in events) == STEPS - STOP


def test_f48_threads_of_the_loader_hold_nothing(runs):
    """There are no loader workers: a step's visits are computed from its number, in whatever order steps are asked."""
    again = runs("adamw")
    loader = again.run.loader
    wanted = [[batch.ids for batch in loader(step)] for step in range(STEPS)]
    assert [[batch.ids for batch in loader(step)] for step in reversed(range(STEPS))] == wanted[::-1]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert again.result(again.state) == again.wanted
    finally:
        torch.set_num_threads(threads)
