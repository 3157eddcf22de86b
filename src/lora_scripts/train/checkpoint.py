"""Checkpoints: a folder `step-N` that is complete or absent, with nothing in it that runs code.

    step-200/
      state.safetensors               trained tensors, averages, optimizer moments
      <name>-step-200.safetensors     the LoRA at this step, ready to load
      manifest.json                   written last: step, sizes and sha256 of every file

A checkpoint is written into a hidden folder beside, flushed, and renamed; one without a manifest does not exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import CheckpointError, LoraScriptsError
from lora_scripts.files import cannot_write, sha256_of, sync, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

# 2: the optimizer's state may be nested and shared (`train.state`); the first format is still read.
SCHEMA_VERSION = 2
STAGED = ".staged-"


@dataclass(frozen=True)
class State:
    """What a run resumes from.

    Attributes:
        step: optimizer steps done.
        tensors: by name, such as "weight/unet.mid_block..." or "exp_avg/...".
        facts: JSON values: losses of the epoch so far, optimizer class, what listeners keep.
    """

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def write(folder: Path, state: State, add_files: Callable[[Path], None]) -> Path:
    """Write `folder/step-N`; `add_files` puts further files into the staged folder.

    Raises:
        MachineError: no space or not writable; older checkpoints are untouched.
    """
    final = folder / f"step-{state.step}"
    staged = folder / f"{STAGED}{final.name}"
    try:
        names = _stage(staged, state, add_files)
        for name in names:
            with (staged / name).open("rb+") as file:
                sync(file.fileno())
        files = {n: {"bytes": (staged / n).stat().st_size, "sha256": sha256_of(staged / n)} for n in names}
        manifest = {"schema": SCHEMA_VERSION, "step": state.step, "facts": dict(state.facts), "files": files}
        with (staged / "manifest.json").open("w", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            sync(file.fileno())
        sync_folder(staged)
        _promote(staged, final)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise cannot_write(folder, error) from error
    except LoraScriptsError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return final


def rehearse(folder: Path, state: State, add_files: Callable[[Path], None]) -> int:
    """Write what a save would write, and remove it again; return its bytes.

    Raises:
        MachineError: no space or not writable; better before the first step than after the first hour.
    """
    staged = folder / f"{STAGED}rehearsal"
    try:
        return sum((staged / name).stat().st_size for name in _stage(staged, state, add_files))
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _stage(staged: Path, state: State, add_files: Callable[[Path], None]) -> list[str]:
    """Write the files of a checkpoint into a new folder; return their names."""
    from safetensors.torch import save

    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    (staged / "state.safetensors").write_bytes(save(_apart(state.tensors)))
    add_files(staged)
    return sorted(path.name for path in staged.iterdir())


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, no two of them in one piece of memory, which the file format does not know."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in seen else value
        seen.add(place)
    return apart


def _promote(staged: Path, final: Path) -> None:
    """Rename into place; a checkpoint of the same step is set aside first and removed after."""
    aside = final.with_name(f".aside-{final.name}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(staged, final)
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints, oldest first."""
    found = [path.parent.name.removeprefix("step-") for path in folder.glob("step-*/manifest.json")]
    return sorted(int(number) for number in found if number.isdigit())


def sweep(folder: Path) -> None:
    """Put back or remove what a kill left; only the process that writes checkpoints may."""
    for aside in folder.glob(".aside-step-*"):
        final = folder / aside.name.removeprefix(".aside-")
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.replace(aside, final)
    for staged in folder.glob(f"{STAGED}*"):
        shutil.rmtree(staged, ignore_errors=True)


def load_newest(folder: Path, tell: Callable[[str, Mapping[str, Any]], None]) -> State | None:
    """Return the newest checkpoint that is whole, or None where there is none.

    Args:
        tell: called with a message code and parameters for each damaged one that is passed over.

    Raises:
        CheckpointError: all are damaged, or the newest was written by a newer version.
    """
    found = steps(folder)
    for step in reversed(found):
        path = folder / f"step-{step}"
        reason = damage(path)
        if reason is None:
            return load(folder, step)
        tell("train.checkpoint_damaged", {"step": step, "reason": reason})
    if found:
        raise CheckpointError("train.all_damaged", path=folder, steps=", ".join(map(str, found)))
    return None


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None.

    Raises:
        CheckpointError: it was written by a newer version.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version, files = int(manifest["schema"]), {n: (r["bytes"], r["sha256"]) for n, r in manifest["files"].items()}
        if f"step-{manifest['step']}" != path.name or not isinstance(manifest["facts"], dict):
            return "manifest.json"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json"
    if version > SCHEMA_VERSION:
        raise CheckpointError("train.newer_version", path=path, version=version, known=SCHEMA_VERSION)
    for name, (size, digest) in files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else 0
        if found != size:
            return f"{name}: {found} / {size} bytes"
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            return f"{name}: sha256"
    return None if "state.safetensors" in files else "state.safetensors"


def load(folder: Path, step: int) -> State:
    """Return the checkpoint of one step.

    Raises:
        CheckpointError: it is absent or damaged.
    """
    from safetensors.torch import load_file

    path = folder / f"step-{step}"
    reason = damage(path)
    if reason is not None:
        raise CheckpointError("train.best_gone", step=step, path=path, reason=reason)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    return State(step, load_file(path / "state.safetensors"), manifest["facts"])


def prune(folder: Path, keep: int | None, best: int | None = None) -> None:
    """Remove the oldest checkpoints until `keep` are left, besides the best; called after a new one is in place."""
    found = [step for step in steps(folder) if step != best] if keep is not None else []
    for step in found[: len(found) - (keep or 0)]:
        path = folder / f"step-{step}"
        with contextlib.suppress(OSError):
            (path / "manifest.json").unlink()
        shutil.rmtree(path, ignore_errors=True)
