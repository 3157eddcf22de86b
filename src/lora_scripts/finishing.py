"""The end of a run: write every LoRA file, read each back by another library's code, compare, try one output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts import registry
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.compare import compare
from lora_scripts.assembly import Run
from lora_scripts.errors import NumericsError
from lora_scripts.runs import RunFolder
from lora_scripts.train import checkpoint, state
from lora_scripts.train.modes import measuring

OUTPUT_TOLERANCE = 1e-3


def export(run: Run, folder: RunFolder, files: Mapping[str, Path], say: Any) -> list[Path]:
    """Write and verify each file; return what else was written beside them.

    Raises:
        NumericsError: a file does not say what the adapter says; the run is not complete then.
    """
    choose(run, folder, say)
    # Where the last measurement was made by an earlier session, it is made again: same weights, same numbers.
    latest = run.evaluate.latest if run.evaluate is not None else None
    if run.evaluate is not None and (latest is None or latest.step != run.trainer.done):
        latest = run.evaluate.tell(run.trainer.done)
    if not run.trainer.accelerator.is_main_process:
        if run.prepared.config.shard_base:
            for _ in files:
                _run_along(run)
        return []
    adapter = run.adapter(run.trainer.done)
    for name, path in files.items():
        exporter = registry.load("exporters", name)
        report = exporter.export(adapter, path)
        written = exporter.read_back(path, adapter)
        compare(written, adapter)
        _compare_output(run, adapter, written, path)
        say("train.verified", path=path, modules=len(adapter))
        for note in report.notes:
            say(note.code, **note.params)
    scores = {"logs": latest.logs, "details": latest.details} if latest is not None else {}
    return list(run.family.leave(folder.path, run.prepared.scan.facts, scores))


def choose(run: Run, folder: RunFolder, say: Any) -> None:
    """Say which step did best on the held-out part; go back to it where the config asks for that."""
    best = run.best.found
    if best is None:
        return
    value = f"{abs(best.value):.3f}"
    if best.step == run.trainer.done or not run.prepared.config.validation.use_best:
        say("train.best", step=best.step, name=best.name, value=value, last=run.trainer.done)
        return
    state.restore(run.trainer, checkpoint.load(folder.checkpoints, best.step))
    say("train.best_used", step=best.step, name=best.name, value=value)


def _compare_output(run: Run, adapter: Adapter, written: Adapter, path: Path) -> None:
    """Run one prediction with the trained pairs and one with the file's, in the training precision."""
    with run.averaged(), measuring(run.family.trainable().values()), run.trainer.accelerator.autocast():
        live = _loss(run)
        run.injected.load(written)
        read = _loss(run)
        run.injected.load(adapter)
    if not abs(live - read) <= OUTPUT_TOLERANCE * abs(live):
        raise NumericsError("train.output_differs", path=path, live=live, read=read)


def _loss(run: Run) -> float:
    return float(run.objective.loss(run.family, run.loader.largest()[0], quantile=0.5).total)


def _run_along(run: Run) -> None:
    """Take part in the passes of `_compare_output`, which gather the base's weights from all processes."""
    with measuring(run.family.trainable().values()), run.trainer.accelerator.autocast():
        for _ in range(2):
            _loss(run)
