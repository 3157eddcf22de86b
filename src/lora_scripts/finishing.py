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
from lora_scripts.train.modes import measuring

OUTPUT_TOLERANCE = 1e-3


def export(run: Run, files: Mapping[str, Path], say: Any) -> None:
    """Write and verify each file.

    Raises:
        NumericsError: a file does not say what the adapter says; the run is not complete then.
    """
    if not run.trainer.accelerator.is_main_process:
        return
    adapter = run.adapter(run.trainer.done)
    for name, path in files.items():
        exporter = registry.load("exporters", name)
        exporter.export(adapter, path)
        written = exporter.read_back(path, adapter)
        compare(written, adapter)
        _compare_output(run, adapter, written, path)
        say("train.verified", path=path, modules=len(adapter))


def _compare_output(run: Run, adapter: Adapter, written: Adapter, path: Path) -> None:
    """Run one prediction with the trained pairs and one with the file's, in the training precision."""

    def loss() -> float:
        batch = run.loader.largest()[0]
        return float(run.objective.loss(run.family, batch, quantile=0.5).total)

    with run.averaged(), measuring(run.family.trainable().values()), run.trainer.accelerator.autocast():
        live = loss()
        run.injected.load(written)
        read = loss()
        run.injected.load(adapter)
    if not abs(live - read) <= OUTPUT_TOLERANCE * abs(live):
        raise NumericsError("train.output_differs", path=path, live=live, read=read)
