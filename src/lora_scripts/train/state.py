"""Between a live trainer and a checkpoint's `State`: every tensor by name, so that order and class can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lora_scripts.errors import CheckpointError
from lora_scripts.train.checkpoint import State
from lora_scripts.train.loop import Trainer

MAX_NAMED = 10
FACTS = frozenset({"optimizer", "optimizer_scalars", "optimizer_groups", "epoch_losses", "scaler"})


def capture(trainer: Trainer, facts: Mapping[str, Any]) -> State:
    """Return everything the next step depends on.

    Random numbers need no state: every draw is seeded by what it is for (`data.order.seed_of`).
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    optimizer = _bare(trainer.optimizer)
    for name, parameter in _named(trainer):
        tensors[f"weight/{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{key}/{name}"] = value
            else:
                scalars[f"{key}/{name}"] = value
    if trainer.average is not None:
        for (name, _), value in zip(_named(trainer), trainer.average.values, strict=True):
            tensors[f"average/{name}"] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    scaler = trainer.accelerator.scaler
    own = {
        "optimizer": type(optimizer).__name__,
        "optimizer_scalars": scalars,
        "optimizer_groups": groups,
        "epoch_losses": list(trainer.epoch_losses),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    return State(trainer.done, tensors, {**own, **facts})


def restore(trainer: Trainer, state: State) -> None:
    """Put a state back, exactly.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape, or the optimizer is of another class.
    """
    optimizer = _bare(trainer.optimizer)
    missing = FACTS - state.facts.keys()
    if missing:
        raise CheckpointError("train.other_tensors", count=len(missing), names=", ".join(sorted(missing)))
    if state.facts["optimizer"] != type(optimizer).__name__:
        raise CheckpointError("train.other_optimizer", found=state.facts["optimizer"], wanted=type(optimizer).__name__)
    named = dict(_named(trainer))
    _check_names(named, state)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(state.tensors[f"weight/{name}"])
    optimizer.state.clear()
    for name, slots in _moments(state, named).items():
        optimizer.state[named[name]] = slots
    for group, facts in zip(optimizer.param_groups, state.facts["optimizer_groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()})
    if trainer.average is not None:
        for i, name in enumerate(named):
            trainer.average.values[i].copy_(state.tensors[f"average/{name}"])
    if trainer.accelerator.scaler is not None and state.facts["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state.facts["scaler"])
    trainer.done, trainer.epoch_losses = state.step, list(state.facts["epoch_losses"])


def _moments(state: State, named: Mapping[str, torch.nn.Parameter]) -> dict[str, dict[str, Any]]:
    """Return the optimizer's slots by parameter name; step counts stay where they were, on the CPU."""
    moments: dict[str, dict[str, Any]] = {}
    for key, tensor in state.tensors.items():
        kind, _, rest = key.partition("/")
        slot, _, name = rest.partition("/")
        if kind == "optimizer":
            device = tensor.device if slot == "step" else named[name].device
            moments.setdefault(name, {})[slot] = tensor.to(device)
    for key, value in state.facts["optimizer_scalars"].items():
        slot, _, name = key.partition("/")
        moments.setdefault(name, {})[slot] = value
    return moments


def _named(trainer: Trainer) -> list[tuple[str, torch.nn.Parameter]]:
    return [(f"{component}/{name}", p) for component, group in trainer.parameters.items() for name, p in group.items()]


def _bare(optimizer: Any) -> Any:
    """Return the torch optimizer inside Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _check_names(named: Mapping[str, torch.nn.Parameter], state: State) -> None:
    stored = {key.removeprefix("weight/"): t for key, t in state.tensors.items() if key.startswith("weight/")}
    wrong = sorted(named.keys() ^ stored.keys())
    wrong += sorted(n for n in named.keys() & stored.keys() if named[n].shape != stored[n].shape)
    if wrong:
        raise CheckpointError("train.other_tensors", count=len(wrong), names=", ".join(wrong[:MAX_NAMED]))
