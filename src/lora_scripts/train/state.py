"""Between a live trainer and a checkpoint's `State`: every tensor by name, so that order and class can be checked.

    weight/<component>/<name>               trained tensors
    buffer/<component>/<name>               tensors of the adapter that are not trained
    average/<component>/<name>              averaged weights, where they are on
    optimizer/<slot>/<component>/<name>     what the optimizer keeps for a tensor
    optimizer/...                           tensors deeper inside its state, or of its groups: the facts say where

What is no tensor stands in the facts as JSON (`optimizer_scalars`, `optimizer_groups`); a tensor that several places
share is stored once and shared again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lora_scripts.errors import CheckpointError, LoraScriptsError
from lora_scripts.train.averaging import bare
from lora_scripts.train.checkpoint import State
from lora_scripts.train.loop import Trainer

MAX_NAMED = 10
FACTS = frozenset({"optimizer", "optimizer_scalars", "optimizer_groups", "epoch_losses", "scaler"})


def capture(trainer: Trainer, facts: Mapping[str, Any]) -> State:
    """Return everything the next step depends on.

    Random numbers need no state: every draw is seeded by what it is for (`data.order.seed_of`).

    Raises:
        LoraScriptsError: the optimizer keeps something that a checkpoint cannot hold.
    """
    optimizer = bare(trainer.optimizer)
    named = _named(trainer)
    writer = _Writer(trainer.accelerator.device)
    for name, parameter in named:
        writer.tensors[f"weight/{name}"] = parameter.detach()
    for name, buffer in _buffers(trainer):
        writer.tensors[f"buffer/{name}"] = buffer.detach()
    scalars = _slots(optimizer, named, writer)
    if trainer.average is not None:
        for (name, _), value in zip(named, trainer.average.values, strict=True):
            writer.tensors[f"average/{name}"] = value
    scaler = trainer.accelerator.scaler
    own = {
        "optimizer": type(optimizer).__name__,
        "optimizer_scalars": scalars,
        "optimizer_groups": _groups(optimizer, named, writer),
        "optimizer_on_cpu": writer.on_cpu,
        "epoch_losses": list(trainer.epoch_losses),
        "slowed": trainer.slowed,
        "micro_batch": [trainer.batches.batch_size, trainer.batches.budget],
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    return State(trainer.done, writer.tensors, {**own, **facts})


def restore(trainer: Trainer, state: State) -> None:
    """Put a state back, exactly.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape, or the optimizer is of another class.
    """
    optimizer = bare(trainer.optimizer)
    missing = FACTS - state.facts.keys()
    if missing:
        raise CheckpointError("train.missing_part", names=", ".join(sorted(missing)))
    if state.facts["optimizer"] != type(optimizer).__name__:
        raise CheckpointError("train.other_optimizer", found=state.facts["optimizer"], wanted=type(optimizer).__name__)
    named, buffers = dict(_named(trainer)), dict(_buffers(trainer))
    averages = trainer.average.values if trainer.average is not None else []
    averaged = dict(zip(named, averages, strict=True)) if averages else {}
    for kind, tensors in (("weight", named), ("buffer", buffers), ("average", averaged)):
        _check_names(kind, tensors, state)
    reader = _Reader(state, trainer.accelerator.device)
    slots = _stored_slots(state, reader)
    groups = _stored_groups(optimizer, state, dict(zip(map(id, named.values()), named, strict=True)), reader)
    with torch.no_grad():
        for kind, tensors in (("weight", named), ("buffer", buffers), ("average", averaged)):
            for name, tensor in tensors.items():
                tensor.copy_(state.tensors[f"{kind}/{name}"])
    optimizer.state.clear()
    for name, values in slots.items():
        optimizer.state[named[name]] = values
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        for key in group.keys() - values.keys() - {"params"}:
            del group[key]
        group.update(values)
    if trainer.accelerator.scaler is not None and state.facts["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state.facts["scaler"])
    trainer.done = state.step
    _restore_measures(trainer, state)
    # A checkpoint at an epoch's end is written before the epoch is told about.
    ended = state.step % trainer.course.steps_per_epoch == 0
    trainer.epoch_losses = [] if ended else list(state.facts["epoch_losses"])


def _restore_measures(trainer: Trainer, state: State) -> None:
    """Put back what the run has learned of rates and sizes; checkpoints of earlier versions do not know of it."""
    trainer.slowed = float(state.facts.get("slowed", 1.0))
    # A run that goes back to an earlier state keeps the smaller micro-batches that it has found to fit since.
    size, budget = state.facts.get("micro_batch", (None, None))
    if size is not None and size < trainer.batches.batch_size:
        trainer.batches.batch_size, trainer.batches.budget = size, budget


class _Writer:
    """Turns values into JSON and named tensors.

    Numbers, texts and lists of them stay what they are; what JSON does not know is an object with one key: "tensor",
    "tuple", "dict", or "float" for those that are not finite.

    Attributes:
        on_cpu: names of tensors that lie on the CPU though the run does not.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.tensors: dict[str, torch.Tensor] = {}
        self.on_cpu: list[str] = []
        self._names: dict[int, str] = {}

    def tensor(self, value: torch.Tensor, name: str) -> bool:
        """Store a tensor under this name; say whether it was not stored before under another."""
        if id(value) in self._names:
            return False
        self._names[id(value)] = name
        self.tensors[name] = value.detach()
        if value.device.type == "cpu" and self.device.type != "cpu":
            self.on_cpu.append(name)
        return True

    def json(self, value: Any, name: str) -> Any:
        """Return a value as JSON; its tensors are stored under `name` and what leads to them.

        Raises:
            LoraScriptsError: there is no way to store it.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is torch.Tensor:
            self.tensor(value, name)
            return {"tensor": self._names[id(value)]}
        if type(value) in (list, tuple):
            row = [self.json(item, f"{name}/{i}") for i, item in enumerate(value)]
            return row if type(value) is list else {"tuple": row}
        if type(value) is dict and all(type(key) is str for key in value):
            return {"dict": {key: self.json(item, f"{name}/{key}") for key, item in value.items()}}
        raise LoraScriptsError("train.state_unknown", name=name, kind=type(value).__name__)


class _Reader:
    """Turns what `_Writer` wrote back into values; a tensor that was shared is one tensor again."""

    def __init__(self, state: State, device: torch.device):
        self.stored, self.device = state.tensors, device
        self.on_cpu = frozenset(state.facts.get("optimizer_on_cpu", ()))
        self._made: dict[str, torch.Tensor] = {}

    def tensor(self, name: str, slot: str = "") -> torch.Tensor:
        """Return the tensor of this name on the device where it lay; torch's own step counts lie on the CPU."""
        if name not in self._made:
            if name not in self.stored:
                raise CheckpointError("train.other_tensors", count=1, names=name)
            stays = name in self.on_cpu or slot == "step"
            self._made[name] = self.stored[name].clone().to("cpu" if stays else self.device)
        return self._made[name]

    def value(self, written: Any) -> Any:
        """Return the value that was written as this JSON."""
        if isinstance(written, list):
            return [self.value(item) for item in written]
        if not isinstance(written, dict):
            return written
        ((kind, content),) = written.items()
        if kind == "tensor":
            return self.tensor(content)
        if kind == "float":
            return float(content)
        if kind == "tuple":
            return tuple(self.value(item) for item in content)
        return {key: self.value(item) for key, item in content.items()}


def _slots(optimizer: Any, named: list[tuple[str, torch.nn.Parameter]], writer: _Writer) -> dict[str, Any]:
    """Store what the optimizer keeps for each tensor; return what is no tensor of its own."""
    strange = optimizer.state.keys() - {parameter for _, parameter in named}
    if strange:
        raise LoraScriptsError("train.state_unknown", name="optimizer", kind=type(strange.pop()).__name__)
    scalars: dict[str, Any] = {}
    for name, parameter in named:
        # In an order that does not depend on the run's past: the first place of a shared tensor names it.
        for slot, value in sorted(optimizer.state.get(parameter, {}).items()):
            place = f"{slot}/{name}"
            if type(value) is not torch.Tensor or not writer.tensor(value, f"optimizer/{place}"):
                scalars[place] = writer.json(value, f"optimizer/{place}")
    return scalars


def _groups(optimizer: Any, named: list[tuple[str, torch.nn.Parameter]], writer: _Writer) -> list[dict[str, Any]]:
    """Return each group's settings and counts, and the names of its tensors in their order."""
    names = {id(parameter): name for name, parameter in named}
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        kept = {k: writer.json(v, f"optimizer/group {number}/{k}") for k, v in group.items() if k != "params"}
        groups.append({**kept, "params": [names[id(parameter)] for parameter in group["params"]]})
    return groups


def _stored_slots(state: State, reader: _Reader) -> dict[str, dict[str, Any]]:
    """Return the optimizer's slots by parameter name."""
    names = {key.removeprefix("weight/") for key in state.tensors if key.startswith("weight/")}
    slots: dict[str, dict[str, Any]] = {}
    for key in state.tensors:
        kind, _, rest = key.partition("/")
        slot, _, name = rest.partition("/")
        if kind == "optimizer" and name in names:
            slots.setdefault(name, {})[slot] = reader.tensor(key, slot)
    for key, value in state.facts["optimizer_scalars"].items():
        slot, _, name = key.partition("/")
        if name not in names:
            raise CheckpointError("train.other_tensors", count=1, names=name)
        slots.setdefault(name, {})[slot] = reader.value(value)
    return slots


def _stored_groups(optimizer: Any, state: State, names: Mapping[int, str], reader: _Reader) -> list[dict[str, Any]]:
    """Return the groups' values; their tensors must be those of the live groups, in the same order."""
    stored = state.facts["optimizer_groups"]
    groups = optimizer.param_groups
    if len(stored) != len(groups):
        raise CheckpointError("train.other_tensors", count=abs(len(stored) - len(groups)), names="optimizer_groups")
    values = []
    for group, kept in zip(groups, stored, strict=True):
        live = [names[id(parameter)] for parameter in group["params"]]
        # Checkpoints of the first format did not name them.
        moved = [a for a, b in zip(live, kept.get("params", live), strict=False) if a != b]
        if moved or len(live) != len(kept.get("params", live)):
            raise CheckpointError("train.other_order", names=", ".join(moved[:MAX_NAMED]))
        values.append({key: reader.value(value) for key, value in kept.items() if key != "params"})
    return values


def _named(trainer: Trainer) -> list[tuple[str, torch.nn.Parameter]]:
    return [(f"{component}/{name}", p) for component, group in trainer.parameters.items() for name, p in group.items()]


def _buffers(trainer: Trainer) -> list[tuple[str, torch.Tensor]]:
    return [(f"{component}/{name}", t) for component, group in trainer.buffers.items() for name, t in group.items()]


def _check_names(kind: str, named: Mapping[str, torch.Tensor], state: State) -> None:
    stored = {key.removeprefix(f"{kind}/"): t for key, t in state.tensors.items() if key.startswith(f"{kind}/")}
    wrong = sorted(named.keys() ^ stored.keys())
    wrong += sorted(n for n in named.keys() & stored.keys() if named[n].shape != stored[n].shape)
    if wrong:
        raise CheckpointError("train.other_tensors", count=len(wrong), names=", ".join(wrong[:MAX_NAMED]))
