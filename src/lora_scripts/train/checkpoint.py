"""Checkpoints: a folder `step-N` that is complete or absent, with nothing in it that runs code.

    step-200/
      state.safetensors               trained tensors, averages, optimizer moments
      <name>-step-200.safetensors     the LoRA at this step, ready to load
      manifest.json                   written last: step, sizes and sha256 of every file

A checkpoint is written into a hidden folder beside, flushed, read back, and renamed; one without a manifest does not
exist. Hidden folders are what a kill left: `.staged-` of a write, `.aside-` of the same step written again, `.pruned-`
of a removal; the next start puts back or removes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import messages, units
from lora_scripts.errors import CheckpointError, LoraScriptsError
from lora_scripts.files import cannot_write, sha256_of, sync, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

# 2: the optimizer's state may be nested and shared (`train.state`); the first format is still read.
SCHEMA_VERSION = 2
STAGED, ASIDE, PRUNED = ".staged-", ".aside-", ".pruned-"
STATE, MANIFEST = "state.safetensors", "manifest.json"
Told = tuple[str, dict[str, Any]]


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


@dataclass(frozen=True)
class Written:
    """A checkpoint in place.

    Attributes:
        bytes: of all its files.
        durable: the file system promised that it survives a power cut.
    """

    path: Path
    bytes: int
    durable: bool


def write(folder: Path, state: State, add_files: Callable[[Path], None]) -> Written:
    """Write `folder/step-N`, and read it back before it gets its name; `add_files` puts further files into it.

    Raises:
        MachineError: no space, not writable, or not what was written; older checkpoints are untouched.
    """
    final = folder / f"step-{state.step}"
    staged = folder / f"{STAGED}{final.name}"
    try:
        digests = _stage(staged, state, add_files)
        durable = [_flush(staged / name) for name in digests]
        files = {n: {"bytes": (staged / n).stat().st_size, "sha256": digest} for n, digest in digests.items()}
        manifest = {"schema": SCHEMA_VERSION, "step": state.step, "facts": dict(state.facts), "files": files}
        with (staged / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            durable.append(sync(file.fileno()))
        durable.append(sync_folder(staged))
        reason = damage(staged, final.name)
        if reason is not None:
            raise OSError(errno.EIO, reason)
        size = sum(path.stat().st_size for path in staged.iterdir())
        durable.append(_promote(staged, final))
    except OSError as error:
        # Before anything is removed: what there is none of is to be seen now.
        failed = cannot_write(folder, error)
        shutil.rmtree(staged, ignore_errors=True)
        raise failed from error
    except LoraScriptsError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return Written(final, size, all(durable))


def rehearse(folder: Path, state: State, add_files: Callable[[Path], None]) -> dict[str, int]:
    """Write what a save would write, and remove it again; return the bytes of each file.

    Raises:
        MachineError: no space or not writable; better before the first step than after the first hour.
    """
    staged = folder / f"{STAGED}rehearsal"
    try:
        return {name: (staged / name).stat().st_size for name in _stage(staged, state, add_files)}
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _stage(staged: Path, state: State, add_files: Callable[[Path], None]) -> dict[str, str]:
    """Write the files of a checkpoint into a new folder; return their sha256 by name.

    That of the state is of what is in memory, so that reading back finds what the disk made of it.
    """
    from safetensors.torch import save

    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    data = save(_apart(state.tensors))
    (staged / STATE).write_bytes(data)
    add_files(staged)
    digests = {path.name: sha256_of(path) for path in sorted(staged.iterdir()) if path.name != STATE}
    return digests | {STATE: hashlib.sha256(data).hexdigest()}


def _flush(path: Path) -> bool:
    with path.open("rb+") as file:
        return sync(file.fileno())


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


def _promote(staged: Path, final: Path) -> bool:
    """Rename into place; a checkpoint of the same step is set aside first, put back if that fails, else removed."""
    aside = final.with_name(f"{ASIDE}{final.name}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    try:
        os.replace(staged, final)
    except OSError:
        if aside.exists():
            os.replace(aside, final)
        raise
    durable = sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return durable


def steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints, oldest first."""
    return [step for step in folders(folder) if (folder / f"step-{step}" / MANIFEST).is_file()]


def folders(folder: Path) -> list[int]:
    """Return the steps that have a folder, whatever is in it, oldest first."""
    found = [path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir()]
    return sorted(int(number) for number in found if number.isdigit())


def sweep(folder: Path) -> list[Told]:
    """Put back or remove what a kill left, and return what to tell; only the process that writes checkpoints may."""
    told: list[Told] = []
    for aside in sorted(folder.glob(f"{ASIDE}step-*")):
        final = folder / aside.name.removeprefix(ASIDE)
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            os.replace(aside, final)
            told.append(("train.save_put_back", {"step": final.name.removeprefix("step-")}))
    for staged in sorted(folder.glob(f"{STAGED}*")):
        shutil.rmtree(staged, ignore_errors=True)
        if staged.name.startswith(f"{STAGED}step-"):
            told.append(("train.save_ignored", {"step": staged.name.removeprefix(f"{STAGED}step-")}))
    for pruned in folder.glob(f"{PRUNED}*"):
        shutil.rmtree(pruned, ignore_errors=True)
    return told


def load_newest(folder: Path, tell: Callable[[str, Mapping[str, Any]], None]) -> State | None:
    """Return the newest checkpoint that is whole, or None where there is none.

    Args:
        tell: called with a message code and parameters for each damaged one that is passed over.

    Raises:
        CheckpointError: all are damaged, or the newest was written by a newer version; nothing is changed on disk.
    """
    damaged: dict[int, str] = {}
    for step in reversed(folders(folder)):
        reason = damage(folder / f"step-{step}")
        if reason is None:
            for other, why in damaged.items():
                tell("train.checkpoint_damaged", {"step": other, "reason": why, "used": step})
            return load(folder, step)
        damaged[step] = reason
    if damaged:
        tried = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError("train.all_damaged", path=folder, tried=tried)
    return None


def damage(path: Path, name: str = "") -> str | None:
    """Return what is wrong with a checkpoint folder, as part of a sentence, or None.

    Args:
        name: of the folder, where it does not have its own yet.

    Raises:
        CheckpointError: it was written by a newer version.
    """
    if not (path / MANIFEST).is_file():
        return messages.text("train.damage.no_manifest", name=MANIFEST)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, files = int(manifest["schema"]), {n: (r["bytes"], r["sha256"]) for n, r in manifest["files"].items()}
        is_ours = f"step-{manifest['step']}" == (name or path.name) and isinstance(manifest["facts"], dict)
        if version <= SCHEMA_VERSION and not (is_ours and STATE in files):
            return messages.text("train.damage.manifest", name=MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return messages.text("train.damage.manifest", name=MANIFEST)
    if version > SCHEMA_VERSION:
        raise CheckpointError("train.newer_version", path=path, version=version, known=SCHEMA_VERSION)
    return next((reason for n, (size, digest) in files.items() if (reason := _wrong(path / n, size, digest))), None)


def _wrong(file: Path, size: int, digest: str) -> str:
    """Return what is wrong with one file, or ""."""
    try:
        found = file.stat().st_size if file.is_file() else 0
        if found != size:
            shown = units.format_bytes(found), units.format_bytes(size)
            if shown[0] == shown[1]:
                shown = f"{found:,} B", f"{size:,} B"
            return messages.text("train.damage.size", name=file.name, found=shown[0], size=shown[1])
        return "" if sha256_of(file) == digest else messages.text("train.damage.sha256", name=file.name)
    except OSError as error:
        return f"{file.name}: {error.strerror or error}"


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
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return State(step, load_file(path / STATE), manifest["facts"])


def prune(
    folder: Path,
    keep: int | None,
    best: int | None = None,
    *,
    every: int | None = None,
    newest: int | None = None,
    resumed: int | None = None,
) -> list[tuple[Path, OSError]]:
    """Remove the oldest checkpoints until `keep` are left, after a new one is in place; return what could not be.

    Args:
        best: stays, whatever its age.
        every: steps that are a multiple of it stay besides.
        newest: the step just saved. What is behind it in steps was passed over as damaged: it does not count.
        resumed: the step this run began from; it stays until this run has saved twice.
    """
    if keep is None:
        return []
    found = [step for step in steps(folder) if newest is None or step <= newest]
    counted = [step for step in found if step != best]
    away = [step for step in counted[: max(0, len(counted) - keep)] if not (every and step % every == 0)]
    if resumed in away and resumed == found[-2]:
        away.remove(resumed)
    return [*_remove(folder, away)]


def _remove(folder: Path, away: list[int]) -> Iterator[tuple[Path, OSError]]:
    """Remove checkpoints, and what an earlier removal left; one with its name still has all its files."""
    for step in away:
        path = folder / f"step-{step}"
        try:
            os.replace(path, folder / f"{PRUNED}{path.name}")
        except OSError as error:
            yield path, error
    for path in folder.glob(f"{PRUNED}*"):
        try:
            shutil.rmtree(path)
        except OSError as error:
            yield path, error
