"""`--continue`: the same weights, moments and step, on with a config or data that changed in ways these bear.

What changed is told before the first step and kept in run.json (`changes`: step, key, old, new). The record then
holds the new config and data, so that the next resume is exact again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import identity, messages, registry
from lora_scripts.config.schema import RunConfig, free_keys, warmup_steps
from lora_scripts.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_scripts.preparation import Prepared
    from lora_scripts.train.checkpoint import State
    from lora_scripts.train.plan import Plan

STRETCH, KEEP = "stretch", "keep"
# What `--continue` may be followed by; nothing, where the run is to be as long as it was.
CHOICES = ("", STRETCH, KEEP)
MAX_NAMED = 5

# Keys outside the schema's free ones that weights, moments and step bear a change of.
CHANGEABLE = frozenset(
    {
        *("datasets", "missing_pictures", "max_bad_fraction", "resolution", "mask", "caption", "flip", "seed"),
        *("batch_size", "gradient_accumulation", "batch_tokens", "max_length", "epochs", "steps", "learning_rate"),
        *("schedule", "warmup", "max_grad_norm", "lora_dropout", "validation", "exporters", "name"),
        *("base_precision", "mixed_precision", "attention", "gradient_checkpointing", "offload_blocks"),
    }
)
_ADAPTER, _BASE = "train.fixed.adapter", "train.fixed.base"
_OBJECTIVE, _OPTIMIZER = "train.fixed.objective", "train.fixed.optimizer"
# Keys that they do not, and the reason.
FIXED = {
    **dict.fromkeys(("lora_rank", "lora_alpha", "lora_layers", "adapter", "lora_targets", "init_lora"), _ADAPTER),
    **dict.fromkeys(("base_model", "family", "prediction_type", "clip_skip"), _BASE),
    **dict.fromkeys(("objective", "loss", "noise_offset", "min_snr_gamma", "mask_floor", "prior"), _OBJECTIVE),
    **dict.fromkeys(("train_on", "labels", "beta", "sft_weight"), _OBJECTIVE),
    **dict.fromkeys(("optimizer", "ema"), _OPTIMIZER),
    "train_text_encoder": _ADAPTER,
}
# Of these only the parts that are not named here are fixed.
_RATES = frozenset({"train_text_encoder.learning_rate"})
_WITH_CARE = frozenset({"base_precision", "mixed_precision"})
# What a checkpoint knows that no longer holds once one of these keys has changed.
_SIZES = frozenset({"batch_size", "gradient_accumulation", "batch_tokens", "resolution"})
_MEASURES = frozenset({"validation", "data", "caption", "resolution", "seed", "datasets", "mask"})
_SAME_MEASURE = frozenset({"validation.every", "validation.use_best"})


@dataclass(frozen=True)
class Continued:
    """What is different from here on.

    Attributes:
        changes: rows of key, old and new, as run.json keeps them.
        planned: see `planned`.
        renewed: what the record holds from now on, besides.
    """

    changes: Sequence[dict[str, Any]]
    planned: dict[str, int]
    renewed: Mapping[str, Any]

    def tell(self, say: Callable[..., None]) -> None:
        """Say every change, old -> new, and what it may cost."""
        if self.changes:
            say("train.continuing", count=len(self.changes))
        for row in self.changes:
            if row["key"] == "data":
                say("train.continue_data", **row["new"])
            elif row["key"] == "schedule_steps":
                kept = row["choice"] == KEEP
                say("train.schedule_kept" if kept else "train.schedule_stretched", steps=self.planned["schedule"])
            else:
                say("train.continue_change", **row)
        if _WITH_CARE & {row["key"] for row in self.changes}:
            say("train.continue_precision")

    def commit(self, record: dict[str, Any], step: int) -> None:
        """Make the record that of the changed run, once its checkpoint has been read."""
        if self.changes:
            record.setdefault("changes", []).extend({"step": step, **row} for row in self.changes)
        record |= {**self.renewed, "planned": self.planned}


def planned(plan: Plan) -> dict[str, int]:
    """Return what a resumed run must know of the plan: its steps, those its schedule spans, visits a step."""
    return {"steps": plan.steps, "schedule": plan.steps, "step_size": plan.step_size}


def planned_before(record: Mapping[str, Any], plan: Plan) -> dict[str, int]:
    """Return `planned` of the run so far; records of earlier versions know it by their resolved values."""
    if "planned" in record:
        return dict(record["planned"])
    resolved = record.get("resolved", {})
    steps = resolved.get("steps", plan.steps)
    size = record["config"].get("batch_size", 1) * resolved.get("gradient_accumulation", 0)
    return {"steps": steps, "schedule": steps, "step_size": size * resolved.get("processes", 1) or plan.step_size}


def unchanged(record: Mapping[str, Any] | None, plan: Plan) -> Continued:
    """Return that nothing changes in the run of this record, or in a new one."""
    return Continued((), planned(plan) if record is None else planned_before(record, plan), {})


def compare(record: Mapping[str, Any], prepared: Prepared, base_hash: str, choice: str, done: int) -> Continued:
    """Return what changed since the run in `record`.

    Args:
        choice: one of `CHOICES`.
        done: steps of the newest checkpoint.

    Raises:
        ConfigError: names every change that is not allowed, with its reason and the way that is open instead.
    """
    config, plan = prepared.config, prepared.plan
    before = planned_before(record, plan)
    keys = identity.changed_keys(record, config, free=True)
    rows = [{"key": key, "old": old, "new": new} for key, (old, new) in keys.items()]
    rows += _data_row(record, prepared)
    problems = _refused(keys, before["step_size"], plan.step_size)
    if record["base"]["hash"] != base_hash:
        problems.append(_problem("base_model", record["base"]["name"], config.base_model, _BASE))
    longer = before["steps"] != plan.steps
    if longer and not choice:
        problems.append(Problem("train.horizon_choice", {"old": before["steps"], "new": plan.steps}))
    if problems:
        if any(problem.code == "train.change_refused" for problem in problems):
            problems.append(Problem("train.change_refused_remedy", {"path": config.output_dir}))
        raise ConfigError(problems=problems)
    span = plan.steps if choice == STRETCH else before["schedule"]
    if longer or span != before["schedule"]:
        rows.append({"key": "schedule_steps", "old": before["schedule"], "new": span, "choice": choice or KEEP})
    if all(row["key"].split(".")[0] in free_keys() for row in rows) and record["state"] == "finished":
        return unchanged(record, plan)
    if rows and done >= plan.steps:
        raise ConfigError("train.nothing_left", done=done, total=plan.steps)
    now = {**planned(plan), "schedule": span}
    return Continued(rows, now, _renewed(prepared)) if rows else unchanged(record, plan)


def _renewed(prepared: Prepared) -> dict[str, Any]:
    return {
        "config": identity.config_facts(prepared.config),
        "data": identity.data_facts(prepared.scan.examples),
        "given": sorted(prepared.config.model_fields_set),
        "started_in": str(Path.cwd()),
    }


def _refused(keys: Mapping[str, tuple[Any, Any]], size_before: int, size_now: int) -> list[Problem]:
    """Return a problem for each change that is not allowed."""
    problems = []
    for key, (old, new) in keys.items():
        top = key.split(".")[0]
        if key in _RATES or top in free_keys():
            continue
        reason = "" if top in CHANGEABLE else FIXED.get(top, _ADAPTER)
        if key == "base_precision" and "float64" in (old, new):
            reason = _ADAPTER
        if reason:
            problems.append(_problem(key, old, new, reason))
    if size_before != size_now:
        problems.append(_problem("batch_size x gradient_accumulation", size_before, size_now, "train.fixed.step_size"))
    return problems


def _problem(key: str, old: Any, new: Any, reason: str) -> Problem:
    return Problem("train.change_refused", {"key": key, "old": old, "new": new, "reason": messages.text(reason)})


def _data_row(record: Mapping[str, Any], prepared: Prepared) -> list[dict[str, Any]]:
    """Return the examples that came, went or were edited: counted, the first few named."""
    found = identity.changed_data(record, prepared.scan.examples)
    if not any(found.values()):
        return []
    counts: dict[str, Any] = {kind: len(ids) for kind, ids in found.items()}
    names = ", ".join([*found["added"], *found["removed"], *found["edited"]][:MAX_NAMED])
    new = {"examples": len(prepared.scan.examples), **counts, "names": names}
    return [{"key": "data", "old": {"examples": len(record["data"])}, "new": new}]


def scheduled(config: RunConfig, span: int) -> Callable[[int], float]:
    """Return the rate's factor by step over a schedule of `span` steps; after its end it stays as in the last."""
    module = registry.load("schedules", config.schedule.name)
    options, warmup = module.Config(**config.schedule.options), min(span, warmup_steps(config.warmup, span))
    return lambda step: module.factor(min(step, span - 1), span, warmup, options)


def surroundings(machine: Any) -> dict[str, str]:
    """Return what of an `assembly.Machine` may change a result, besides versions."""
    import torch

    device, precision = machine.accelerator.device, machine.precision
    found = {
        "device": device.type,
        "base_precision": str(precision.base).removeprefix("torch."),
        "mixed_precision": str(precision.mixed),
    }
    if device.type == "cuda":
        return {**found, "device_name": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return {**found, "threads": str(torch.get_num_threads())}


def renewed(state: State, changes: Sequence[Mapping[str, Any]]) -> State:
    """Return a state without what it knows of sizes and measurements that a later change has made untrue."""
    later = {row["key"] for row in changes if row.get("step", state.step) >= state.step} - _SAME_MEASURE
    tops = {key.split(".")[0] for key in later}
    untrue = {"micro_batch"} if tops & _SIZES else set()
    untrue |= {"best"} if tops & _MEASURES else set()
    return replace(state, facts={name: value for name, value in state.facts.items() if name not in untrue})


def settle(
    record: dict[str, Any],
    change: Continued,
    surroundings: Mapping[str, Any],
    step: int,
    say: Callable[..., None],
) -> None:
    """Put into the record what this session changed, and warn once where it runs in other surroundings.

    Args:
        surroundings: versions, device and number formats of this session.
        step: the one that was resumed.
    """
    change.commit(record, step)
    other = identity.changed_environment(record, surroundings)
    if other and step:
        before, now = (", ".join(f"{key} {pair[side]}" for key, pair in other.items()) for side in (0, 1))
        say("train.other_surroundings", before=before, now=now)
        old, new = ({key: pair[side] for key, pair in other.items()} for side in (0, 1))
        row = {"step": step, "key": "environment", "old": old, "new": new}
        record.setdefault("changes", []).append(row)
    record["environment"] = dict(surroundings)
