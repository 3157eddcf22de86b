"""A model's folder, wherever it lies, and what identifies it without reading all of a large one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from lora_scripts.errors import BaseModelError, MachineError

EDGE = 1 << 20
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find(model: str, patterns: Sequence[str], *, local: bool = False) -> Path:
    """Return the folder of a model: itself, or the snapshot of a hub id, which may be downloaded because it was named.

    Args:
        local: nobody named it; look on this machine only.

    Raises:
        BaseModelError: it is neither a folder nor a hub id.
        MachineError: the hub cannot be reached and the local cache does not have it.
    """
    folder = Path(model)
    if folder.is_dir() and not local:
        return folder
    if not local and (folder.exists() or model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise BaseModelError("captioner.no_model_folder", model=model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    ignored = [f"*{suffix}" for suffix in PICKLES] + ["*.py", "*.msgpack", "*.h5"]
    try:
        return Path(
            snapshot_download(model, allow_patterns=list(patterns), ignore_patterns=ignored, local_files_only=local)
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).split("\n")[0][:160]
        raise MachineError("captioner.hub", model=model, reason=reason) from error


def identity(folder: Path, more: str) -> str:
    """sha256 over the names, sizes and both ends of a model's files, and over `more`.

    Both ends of 1 MiB: weights that differ differ in their header or, but for a made case, in what they begin and end
    with; reading tens of GB only to name a model would take longer than labelling.
    """
    digest = hashlib.sha256(more.encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in PICKLES):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            if size > 2 * EDGE:
                file.seek(-EDGE, 2)
            digest.update(file.read(EDGE))
    return digest.hexdigest()
