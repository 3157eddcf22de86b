"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lora_scripts.errors import MachineError
from lora_scripts.units import format_bytes

STAGED_PREFIX = ".staged-"


def replace_file(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Call `write` on a new file beside `path`, then put it in `path`'s place.

    Args:
        durable: wait until the disk has it, so that a power cut cannot leave an empty file.

    Raises:
        MachineError: no space, or the folder cannot be written; what was at `path` is untouched.
    """
    staged = path.with_name(f"{STAGED_PREFIX}{os.getpid()}-{path.name}")
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(staged.unlink, missing_ok=True)
            with staged.open("wb") as file:
                write(file)
                file.flush()
                if durable:
                    sync(file.fileno())
            os.replace(staged, path)
    except OSError as error:
        raise cannot_write(path.parent, error) from error


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace `path` by a file with these bytes; see `replace_file`."""
    replace_file(path, lambda file: file.write(data), durable=durable)


def sync(handle: int) -> bool:
    """Flush a file or folder to the disk; return False where the file system cannot. Errors of the disk are raised."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        return False
    return True


def sync_folder(path: Path) -> bool:
    """Make renames inside a folder durable, where the system lets a folder be opened; return as `sync`."""
    if os.name != "posix":
        return True
    handle = os.open(path, os.O_RDONLY)
    try:
        return sync(handle)
    finally:
        os.close(handle)


def cannot_write(folder: Path, error: OSError) -> MachineError:
    """Return the error to raise when writing into a folder failed."""
    reason = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return MachineError("train.not_writable", path=folder, reason=reason)
    free, full_of_files = room(folder)
    if full_of_files and free:
        return MachineError("train.no_inodes", path=folder, reason=reason, free=format_bytes(free))
    return MachineError("train.no_space", path=folder, reason=reason, free=format_bytes(free))


def room(path: Path) -> tuple[int, bool]:
    """Return the free bytes of the file system that a path is or will be on, and whether it takes no further file."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        if not hasattr(os, "statvfs"):
            return shutil.disk_usage(path).free, False
        found = os.statvfs(path)
    except OSError:
        return 0, False
    # Some file systems do not count files: both numbers are 0 then.
    return found.f_bavail * found.f_frsize, found.f_files > 0 and found.f_favail == 0


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def at_home(path: Path | str) -> Path:
    """Return a path with "~" as the user's home; an unknown user's stays as it is."""
    return Path(os.path.expanduser(path))


def user_cache() -> Path:
    """Return the folder for what can be made again: `XDG_CACHE_HOME` where it is set, else the system's usual place."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "lora-scripts"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "lora-scripts" / "cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "lora-scripts"
