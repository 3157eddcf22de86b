"""The end of a run: write every LoRA file, read each back by another library's code, compare, try one output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lora_scripts import registry
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.compare import compare
from lora_scripts.assembly import Run
from lora_scripts.errors import NumericsError

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


@torch.no_grad()
def _compare_output(run: Run, adapter: Adapter, written: Adapter, path: Path) -> None:
    """Run one prediction with the trained pairs and one with the file's, in the training precision."""
    batch = run.loader.largest()[0]
    with run.averaged(), run.trainer.accelerator.autocast():
        live = run.objective.loss(run.family, batch, quantile=0.5).total
        run.injected.load(written)
        batch = run.loader.largest()[0]
        read = run.objective.loss(run.family, batch, quantile=0.5).total
        run.injected.load(adapter)
    difference = abs(float(live) - float(read))
    if not difference <= OUTPUT_TOLERANCE * abs(float(live)):
        raise NumericsError("train.output_differs", path=path, live=float(live), read=float(read))
