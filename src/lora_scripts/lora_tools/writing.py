"""Writing a LoRA made here: beside its place, read again by another library, compared, and only then put there."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts import registry
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.compare import compare
from lora_scripts.errors import ConfigError
from lora_scripts.files import at_home, cannot_write
from lora_scripts.lora_tools.sources import Tell
from lora_scripts.units import format_bytes

if TYPE_CHECKING:
    import torch

KOHYA, DIFFUSERS, PEFT = "kohya", "diffusers", "peft"
LAYOUTS = (KOHYA, DIFFUSERS, PEFT)
ENDING = ".safetensors"
UNFINISHED = ".unfinished-"
# Not finer than what the readers compute: they multiply their own scale out, in float32.
TOLERANCE = 1e-6
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Target:
    """Where a LoRA goes.

    Attributes:
        to: one of `LAYOUTS`.
        path: a .safetensors file, or a folder that is made.
        name: what the file calls itself.
    """

    to: str
    path: Path
    name: str

    @property
    def is_file(self) -> bool:
        """Whether `path` is the file itself."""
        return self.path.suffix.lower() == ENDING


def plan(
    output: Path,
    to: str | None,
    meta: AdapterMeta,
    inputs: Sequence[Path],
    *,
    bases: Sequence[Path | str] = (),
    overwrite: bool = False,
) -> Target:
    """Decide layout and place, before anything is computed.

    Args:
        to: the layout, or None for the one that most programs load: kohya's for pictures, PEFT's for texts.
        inputs, bases: what was read, and the models; never replaced.

    Raises:
        ConfigError: the place is taken, is an input, or does not go with the layout; or the layout has no place for
            the family.
    """
    to = to or (PEFT if meta.family == files.LANGUAGE_FAMILY else KOHYA)
    target = Target(to, output, output.stem if output.suffix.lower() == ENDING else output.name)
    exporter = registry.load("exporters", to)
    reason = exporter.refuses(replace(meta, name=target.name))
    if reason is not None:
        raise ConfigError(reason.code, **reason.params)
    # One file needs its name; PEFT's format is a folder, and diffusers' may be either.
    if (to == KOHYA and not target.is_file) or (to == PEFT and target.is_file):
        code = "lora.output_needs_file" if to == KOHYA else "lora.output_needs_folder"
        raise ConfigError(code, path=output, to=to)
    taken = _real(output)
    for path in inputs:
        if taken in (_real(path), *(_real(part.path) for part in files.inspect(path))):
            raise ConfigError("lora.output_is_input", path=output)
        if not target.is_file and taken == _real(path if path.is_dir() else path.parent):
            raise ConfigError("lora.output_is_input", path=output)
    if any(_real(Path(base)) in (taken, *taken.parents) for base in bases if base):
        raise ConfigError("lora.output_is_input", path=output)
    wrong_kind = output.exists() and not (output.is_file() if target.is_file else output.is_dir())
    occupied = output.exists() and (target.is_file or any(output.iterdir()) if not wrong_kind else True)
    if wrong_kind or (occupied and not overwrite):
        raise ConfigError("lora.occupied" if not wrong_kind else "lora.occupied_otherwise", path=output)
    return target


def _real(path: Path) -> Path:
    return at_home(path).resolve()


def write(adapter: Adapter, target: Target, tell: Tell, *, exact: bool = False) -> Adapter:
    """Write, read again by another library's code, compare module by module, put into place.

    Args:
        exact: keep every bit of the tensors, for conversions there and back.

    Returns:
        What the other library read.

    Raises:
        NumericsError: a value is not finite, or the file is not what it should be; nothing is left.
        MachineError: no space, or not writable.
    """
    exporter = registry.load("exporters", target.to)
    adapter = replace(adapter, meta=replace(adapter.meta, name=target.name))
    with _staged(target) as folder:
        path = _place_in(folder, target, exporter.file_name(adapter.meta))
        export = getattr(exporter, "export_exact", exporter.export) if exact else exporter.export
        report = export(adapter, path)
        with warnings.catch_warnings():
            # What a library warns of, such as a base that is not named, is either compared here or of no meaning.
            warnings.simplefilter("ignore")
            read = exporter.read_back(path, adapter)
        compare(read, adapter, TOLERANCE)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    tell(
        "lora.wrote",
        path=target.path,
        to=target.to,
        size=format_bytes(size),
        tensors=report.tensors,
        modules=len(adapter),
    )
    for note in report.notes:
        tell(note.code, **note.params)
    return read


def _place_in(folder: Path, target: Target, usual: str) -> Path:
    """Return what the exporter is asked to write: a file in the folder, or the folder itself, as its name tells."""
    if target.is_file:
        return folder / target.path.name
    return folder / usual if Path(usual).suffix == ENDING else folder


@contextmanager
def _staged(target: Target) -> Iterator[Path]:
    """Give a folder beside the place; what was written there takes its place when the block ends well."""
    parent = target.path.parent
    folder = target.path.with_name(f"{UNFINISHED}{os.getpid()}-{target.path.name}")
    try:
        folder.mkdir(parents=True)
        try:
            yield folder
            if not target.is_file:
                _clear(target.path)
            for file in sorted(file for file in folder.rglob("*") if file.is_file()):
                place = (parent if target.is_file else target.path) / file.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise cannot_write(parent, error) from error


def _clear(folder: Path) -> None:
    """Remove an earlier LoRA's files: what the new one does not replace would be read as part of it."""
    for name in (files.PEFT_FILE, files.PEFT_CONFIG, files.DIFFUSERS_FILE):
        for old in (folder / name, *folder.glob(f"*/{name}")):
            old.unlink(missing_ok=True)


def cast(adapter: Adapter, dtype: str | None) -> Adapter:
    """Give all pairs a number format; None leaves them."""
    if dtype is None:
        return adapter
    import torch

    wanted: torch.dtype = getattr(torch, dtype)
    made = {
        component: {
            path: LoraPair(pair.down.to(wanted), pair.up.to(wanted), pair.alpha) for path, pair in updates.items()
        }
        for component, updates in adapter.pairs.items()
    }
    return replace(adapter, pairs=made)
