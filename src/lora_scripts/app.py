"""The use-case `train`: wiring only. What each part does stands in its own file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts import identity
from lora_scripts.config.schema import RunConfig
from lora_scripts.contracts import Placement
from lora_scripts.data.cache import Cache
from lora_scripts.errors import LoraScriptsError, Stopped
from lora_scripts.events import Failed
from lora_scripts.preparation import Prepared, cache_folder, file_names, prepare
from lora_scripts.runs import RunFolder

log = logging.getLogger("lora_scripts")
Tell = Callable[..., None]


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        files: exported LoRA files by exporter name.
        steps: optimizer steps done.
        already: the run was complete before this command.
    """

    prepared: Prepared
    folder: Path
    files: Mapping[str, Path]
    steps: int
    already: bool = False


def train(
    config: RunConfig,
    *,
    prepared: Prepared | None = None,
    restart: bool = False,
    listeners: Sequence[Any] = (),
    tell: Tell | None = None,
) -> Outcome:
    """Train a LoRA as the config says, or carry on where the same command was interrupted.

    Args:
        prepared: what `preparation.prepare` returned for this config, when the caller has it.
        restart: forget what the output folder holds of an earlier run.
        listeners: further listeners to the run's events.
        tell: called with a message code and its parameters for what a person should read.

    Raises:
        LoraScriptsError: see `errors`; what was saved before stays usable.
    """
    say = tell or (lambda code, **params: None)
    folder = RunFolder(config.output_dir)
    folder.check()
    prepared = prepared or prepare(config, processes())
    with folder.owned():
        names = file_names(prepared)
        if restart:
            folder.clear(tuple(names.values()))
        with _logged(folder):
            return _train(prepared, folder, names, listeners, say)


def processes() -> int:
    """Return how many processes train together (set by torchrun or accelerate launch)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _train(
    prepared: Prepared, folder: RunFolder, names: Mapping[str, str], listeners: Sequence[Any], say: Tell
) -> Outcome:
    from lora_scripts import assembly, finishing

    config = prepared.config
    record = folder.record()
    say("train.loading", base=prepared.base.name)
    machine = assembly.machine(config)
    placement = Placement(
        device=machine.accelerator.device,
        base_dtype=machine.precision.base,
        encoder_dtype=assembly.ENCODER_DTYPE,
        attention=config.attention,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    family = prepared.family.load(prepared.base, placement)
    base_hash = family.weights_hash()
    files = {name: folder.path / file for name, file in names.items()}
    if record is not None:
        identity.check_same(record, config, prepared.scan.examples, base_hash)
        if record["state"] == "finished" and all(path.exists() for path in files.values()):
            return Outcome(prepared, folder.path, files, prepared.plan.steps, already=True)
    else:
        record = {
            "schema": 1,
            "config": identity.config_facts(config),
            "data": identity.data_facts(prepared.scan.examples),
            "base": {"name": prepared.base.name, "family": prepared.base.family, "hash": base_hash},
            "environment": identity.environment(),
            "sessions": [],
        }
    started = time.time()
    record["state"] = "running"
    record["resolved"] = _resolved(prepared, machine)
    record["sessions"].append({"started": started})
    folder.write_record(record)
    run = assembly.build(prepared, family, machine, Cache(cache_folder(config)), base_hash)
    assembly.resume(run, folder, say)
    hub = assembly.listen(run, folder, listeners, say)
    try:
        finished = run.trainer.fit(run.loader.largest())
        if not finished.stopped:
            finishing.export(run, files, say)
    except LoraScriptsError as error:
        hub.emit(Failed(run.trainer.done, str(error)))
        _close(record, folder, "failed", started, run.trainer.done)
        raise
    state = "stopped" if finished.stopped else "finished"
    _close(record, folder, state, started, run.trainer.done)
    if finished.stopped:
        raise Stopped("train.stopped", exit_code=run.signals.exit_code, step=finished.step, total=finished.total)
    return Outcome(prepared, folder.path, files, finished.step)


def _resolved(prepared: Prepared, machine: Any) -> dict[str, Any]:
    """What the config left to the program, as it was decided."""
    config, plan = prepared.config, prepared.plan
    return {
        "name": config.resolved_name,
        "family": prepared.base.family,
        "objective": prepared.objective,
        "prediction_type": prepared.base.prediction_type,
        "resolution": list(prepared.base.sizes(config.resolution).resolutions),
        "lora_alpha": config.resolved_alpha,
        "lora_targets": {component: list(patterns) for component, patterns in prepared.targets.items()},
        "gradient_accumulation": plan.accumulation,
        "steps": plan.steps,
        "warmup": plan.warmup,
        "base_precision": str(machine.precision.base).removeprefix("torch."),
        "mixed_precision": machine.precision.mixed,
        "device": str(machine.accelerator.device),
        "processes": machine.accelerator.num_processes,
        "cache_dir": str(cache_folder(config)),
    }


def _close(record: dict[str, Any], folder: RunFolder, state: str, started: float, step: int) -> None:
    from lora_scripts.train.memory import peak_bytes

    record["state"] = state
    record["sessions"][-1] |= {"seconds": round(time.time() - started, 2), "step": step, "peak_bytes": peak_bytes()}
    folder.write_record(record)


@contextmanager
def _logged(folder: RunFolder) -> Iterator[None]:
    """Keep the whole trace of any error in train.log."""
    handler = logging.FileHandler(folder.log_path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    except BaseException as error:
        log.error("%s", error, exc_info=True)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
