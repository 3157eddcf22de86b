"""The use-case `train`: wiring only. What each part does stands in its own file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts import continuing, identity, messages, registry
from lora_scripts.config.schema import RunConfig
from lora_scripts.data.cache import Cache
from lora_scripts.errors import DataError, LoraScriptsError, MachineError, Stopped
from lora_scripts.events import Command, Event, Failed, Finished
from lora_scripts.preparation import Prepared, cache_folder, file_names, prepare
from lora_scripts.redaction import hide
from lora_scripts.runs import SCHEMA_VERSION, RunFolder
from lora_scripts.train import checkpoint, ranks
from lora_scripts.train.memory import peak_bytes

log = logging.getLogger("lora_scripts")
Tell = Callable[..., None]
# The exit code of a run that was asked to stop by another process: as if by Ctrl-C.
ASKED = 130


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
    continued: str | None = None,
    listeners: Sequence[Any] = (),
    tell: Tell | None = None,
) -> Outcome:
    """Train a LoRA as the config says, or carry on where the same command was interrupted.

    Args:
        prepared: what `preparation.prepare` returned for this config, when the caller has it.
        restart: forget what the output folder holds of an earlier run.
        continued: carry on though something changed, if it may; one of `continuing.CHOICES`.
        listeners: further listeners to the run's events.
        tell: called with a message code and its parameters for what a person should read.

    Raises:
        LoraScriptsError: see `errors`; what was saved before stays usable.
    """

    def say(code: str, **params: object) -> None:
        log.info(messages.text(code, **params))
        if tell is not None:
            tell(code, **params)

    folder = RunFolder(config.output_dir)
    folder.check()
    prepared = prepared or prepare(config, processes())
    with folder.owned() if is_main() else nullcontext() as before:
        names = file_names(prepared)
        if is_main():
            folder.sweep()
            Cache(cache_folder(config)).open()
        with _logged(folder, say) if is_main() else nullcontext():
            if is_main():
                _tidy(folder, before, say)
            return _train(prepared, folder, names, listeners, say, restart=restart, continued=continued)


def _tidy(folder: RunFolder, before: Mapping[str, Any] | None, say: Tell) -> None:
    """Put in order what a run that was killed left, and say so."""
    if before is not None:
        say("train.lock_taken", path=folder.path, **before)
    for code, params in checkpoint.sweep(folder.checkpoints):
        say(code, **params)


def processes() -> int:
    """Return how many processes train together (set by torchrun or accelerate launch)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Say whether this is the one process that owns the output folder and writes to it."""
    return int(os.environ.get("RANK", "0")) == 0


def _train(
    prepared: Prepared,
    folder: RunFolder,
    names: Mapping[str, str],
    listeners: Sequence[Any],
    say: Tell,
    *,
    restart: bool,
    continued: str | None = None,
) -> Outcome:
    config = prepared.config
    files = {name: folder.path / file for name, file in names.items()}
    base_hash = prepared.family.weights_hash(prepared.base)
    record, change = _known_run(prepared, folder, base_hash, continued, restart=restart)
    is_over = record is not None and record["state"] == "finished" and not change.changes
    if is_over and all(path.exists() for path in files.values()):
        return Outcome(prepared, folder.path, files, prepared.plan.steps, already=True)
    from lora_scripts import assembly, finishing

    say("train.loading", base=prepared.base.name)
    machine = assembly.machine(config, processes())
    run = assembly.build(prepared, machine, Cache(cache_folder(config)), base_hash)
    with ranks.in_words(machine.accelerator):
        assembly.fill(run, say)
    change.tell(say)
    # Only now is an earlier run forgotten: nothing that could still refuse this one comes after.
    if restart and is_main():
        folder.clear()
    record = record or _new_record(prepared, base_hash)
    surroundings = {**identity.environment(), **continuing.surroundings(machine)}
    run.trainer.factor = continuing.scheduled(prepared.config, change.planned["schedule"])
    record |= {
        "state": "running",
        "files": [*names.values(), *_beside(names)],
        "resolved": _resolved(prepared, machine),
    }
    session: dict[str, Any] = {"started": time.time()}
    record["sessions"].append(session)
    if is_main():
        folder.write_record(record)
    state = "failed"
    try:
        with ranks.in_words(machine.accelerator):
            # The others look for checkpoints only when those of a forgotten run are gone.
            machine.accelerator.wait_for_everyone()
            assembly.resume(run, folder, say, [*record.get("changes", ()), *change.changes])
            # Only what has been resumed is a changed run; a checkpoint that cannot be read leaves it as it was.
            continuing.settle(record, change, surroundings, run.trainer.done, say)
            if is_main():
                folder.write_record(record)
                run.hub.listeners.append(_kept(folder, record, say))
            assembly.listen(run, folder, listeners, say)
            finished = run.trainer.fit(run.loader.largest())
            if not finished.stopped:
                extra = finishing.export(run, folder, files, say)
                record["files"] += [path.name for path in extra if path.name not in record["files"]]
            ranks.part(machine.accelerator)
        state = "stopped" if finished.stopped else "finished"
    except DataError as error:
        # Data are read between steps only, so that what was done so far is whole and can be saved.
        run.hub.emit(Finished(run.trainer.done, prepared.plan.steps, True))
        run.hub.emit(Failed(run.trainer.done, str(error)))
        raise
    except LoraScriptsError as error:
        record["error"] = str(error)
        run.hub.emit(Failed(run.trainer.done, str(error)))
        raise
    finally:
        run.signals.restore()
        session |= {
            "step": run.trainer.done,
            "seconds": round(time.time() - session["started"], 2),
            "peak_bytes": peak_bytes(),
        }
        record["state"] = state
        if is_main():
            _write_last(folder, record)
    if finished.stopped:
        raise Stopped(
            "train.stopped", exit_code=run.signals.exit_code or ASKED, step=finished.step, total=finished.total
        )
    return Outcome(prepared, folder.path, files, finished.step)


def _write_last(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Write the record of a run that has ended; what made it fail is told, not that this could not be written either.

    Raises:
        MachineError: the record of a run that did not fail cannot be written.
    """
    try:
        folder.write_record(record)
    except MachineError:
        if record["state"] != "failed":
            raise


def _kept(folder: RunFolder, record: Mapping[str, Any], say: Tell) -> Callable[[Event], Command | None]:
    """Return a listener that makes the folder and its record anew where somebody deleted them."""

    def keep(event: Event) -> Command | None:
        if not folder.record_path.exists():
            folder.write_record(record)
            say("train.folder_gone", path=folder.path)
        return None

    return keep


def _beside(names: Mapping[str, str]) -> list[str]:
    """Return the names of files that exporters write beside their own."""
    beside = {name: getattr(registry.load("exporters", name), "BESIDE", {}) for name in names}
    return [other for name, file in names.items() for other in beside[name].get(file, ())]


def _known_run(
    prepared: Prepared, folder: RunFolder, base_hash: str, continued: str | None, *, restart: bool
) -> tuple[dict[str, Any] | None, continuing.Continued]:
    """Return the record of the run to carry on, or None for a new one, and what changes in it.

    A changed run is refused by name. One that never saved has nothing to lose: it starts over, with whatever the
    config says now.
    """
    record, saved = None if restart else folder.record(), checkpoint.folders(folder.checkpoints)
    if record is None or (record["state"] != "finished" and not saved):
        return None, continuing.unchanged(None, prepared.plan)
    if continued is not None:
        return record, continuing.compare(record, prepared, base_hash, continued, max(saved, default=0))
    identity.check_same(record, prepared.config, prepared.scan.examples, base_hash)
    return record, continuing.unchanged(record, prepared.plan)


def _new_record(prepared: Prepared, base_hash: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "config": identity.config_facts(prepared.config),
        "data": identity.data_facts(prepared.scan.examples),
        "base": {"name": prepared.base.name, "family": prepared.base.family, "hash": base_hash},
        "environment": {},
        "planned": continuing.planned(prepared.plan),
        "sessions": [],
        "given": sorted(prepared.config.model_fields_set),
        "started_in": str(Path.cwd()),
    }


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


class _LogFile(logging.Handler):
    """Opens its file for each record, so that it begins anew where that is deleted; tells once what it cannot write."""

    def __init__(self, path: Path, say: Tell):
        super().__init__()
        self.path, self.say, self._told = path, say, False
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; training goes on without it."""
        try:
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(hide(self.format(record)) + "\n")
        except OSError as error:
            if not self._told:
                self._told = True
                reason = error.strerror or str(error)
                self.say("train.note", note=messages.text("train.log_gap", path=self.path, reason=reason))


@contextmanager
def _logged(folder: RunFolder, say: Tell) -> Iterator[None]:
    """Keep what is said, and the whole trace of any error, in train.log."""
    handler = _LogFile(folder.log_path, say)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    except Stopped as stop:
        log.info("%s", stop)
        raise
    except BaseException as error:
        log.error("%s", error, exc_info=True)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
