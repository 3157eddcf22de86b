"""A language model with a LoRA inside its weights: W + scale * up @ down, in float32, compared with peft's own merge.

Only then are the weights cast to the base's number format, or the one asked for. The folder is made beside its place,
loaded again, compared tensor by tensor, and put into its place when it is whole.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters import base_folder
from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.adapters.base_hash import weight_files
from lora_scripts.adapters.names import LANGUAGE_MODEL, some
from lora_scripts.adapters.safetensors_file import DTYPES, read_header
from lora_scripts.errors import BaseModelError, LoraScriptsError, NumericsError
from lora_scripts.files import cannot_write, write_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Written last into the folder: it says that the folder is whole, and ours to replace.
MARK = "lora_scripts.json"
# Not the prefix of staged files: a run that sweeps those expects no folders.
UNFINISHED = ".unfinished-"
# What a base has beside its weights and config: tokenizer, chat template, how it likes to be sampled, licence.
COPIED = (
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "additional_chat_templates/*", "generation_config.json", "LICENSE*", "NOTICE*"),
)
DTYPE_NAMES = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Largest allowed difference from peft's update, relative to its norm, and from its merged weights, relative to the
# largest of them: both sides do the same few float32 operations (rounding 6e-8 each), in an order that may differ.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Merged:
    """What was written.

    Attributes:
        tensors: how many were compared.
        modules: how many of them carry the LoRA.
        dtype: the number formats found in the result, such as "bfloat16".
    """

    path: Path
    tensors: int
    modules: int
    dtype: str


def merge(
    adapter: Adapter, source: Path, base: Path, target: Path, tell: Callable[..., None], *, dtype: str | None = None
) -> Merged:
    """Write a folder that transformers loads without peft.

    Args:
        adapter: what was read from `source`.
        source: a PEFT folder; peft reads it once more by itself, for the comparison.
        base: a folder with full-precision weights.
        target: absent, empty, or a merged folder that is replaced.
        dtype: "float32", "bf16" or "fp16", or None to leave every tensor as the base has it.

    Raises:
        BaseModelError: the base is quantised, broken, or not the one of the adapter.
        NumericsError: the result differs from peft's, is not finite, or is not what is read again.
        MachineError: no space, or not writable.
    """
    kind = base_folder.config(base).get("quantization_config")
    if kind:
        raise BaseModelError("export.quantised", base=base, kind=str(dict(kind).get("quant_method", "-")))
    tell("export.merging", name=adapter.meta.name, base=base)
    model = _load(base, "float32")
    _check_fits(model, adapter, base)
    model = _add(model, adapter, source)
    _cast(model, base, DTYPE_NAMES[dtype] if dtype else None)
    with _unfinished(target) as folder:
        _save(model, base, folder)
        tell("export.comparing", path=target)
        live = model.state_dict()
        _compare(folder, target, live)
        facts = {"adapter": adapter.meta.name, "base": base.name, "base_hash": adapter.meta.base_hash}
        write_bytes(folder / MARK, (json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
    formats = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in live.values()})
    return Merged(target, len(live), len(adapter), ", ".join(formats))


def is_ours(folder: Path) -> bool:
    """Say whether a folder was written by `merge`."""
    return (folder / MARK).is_file()


def _load(folder: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
        raise BaseModelError("base.cannot_load", path=folder, reason=reason) from error


def _check_fits(model: Any, adapter: Adapter, base: Path) -> None:
    """Refuse modules that the base does not have, and an output layer that is the embedding as well."""
    named = dict(model.named_modules())
    pairs = adapter.pairs[LANGUAGE_MODEL]
    missing = [path for path, pair in pairs.items() if not _fits(named.get(path), pair)]
    name = adapter.meta.name
    if missing:
        raise BaseModelError("adapter.not_in_base", name=name, count=len(missing), names=some(missing))
    embedding = model.get_input_embeddings().weight
    if any(named[path].weight is embedding for path in pairs):
        raise BaseModelError("export.tied", name=name, base=base)


def _fits(module: Any, pair: LoraPair) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and tuple(weight.shape) == (pair.up.shape[0], pair.down.shape[1])


def _add(model: Any, adapter: Adapter, source: Path) -> Any:
    """Add every pair to its weight, and hold the sum against what peft makes of the folder for the same layer."""
    import torch
    from peft import PeftModel

    folder = source if source.is_dir() else source.parent
    with warnings.catch_warnings():
        # peft warns of what it does not find in the folder; here that is an error, with the module's name.
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(model, str(folder))
    pairs = dict(adapter.pairs[LANGUAGE_MODEL])
    with torch.no_grad():
        for path, layer in wrapped.base_model.model.named_modules():
            if getattr(layer, "lora_A", None):
                _add_one(path, layer, pairs.pop(path, None))
    if pairs:
        raise NumericsError("adapter.modules_differ", name=adapter.meta.name, count=len(pairs), names=some(pairs))
    return wrapped.base_model.unload()


def _add_one(path: str, layer: Any, pair: LoraPair | None) -> None:
    weight = layer.get_base_layer().weight
    theirs = layer.get_delta_weight("default")
    ours = pair.delta().to(weight.device) if pair is not None else theirs.new_zeros(theirs.shape)
    wanted = weight + ours
    layer.merge()
    by = max(
        _relative(theirs - ours, ours.norm()),
        _relative((weight - wanted).abs().max(), wanted.abs().max()),
    )
    if not by <= TOLERANCE:
        raise NumericsError("export.merge_differs", module=path, by=f"{by:.1e}")
    weight.copy_(wanted)


def _relative(difference: Tensor, size: Tensor) -> float:
    """Return a norm relative to a size; anything beside a size of zero is infinitely much."""
    norm = float(difference.norm())
    return norm / float(size) if float(size) else (float("inf") if norm else norm)


def _cast(model: Any, base: Path, dtype: str | None) -> None:
    """Give every tensor the number format asked for, else the one that it has in the base's files.

    Raises:
        NumericsError: a value does not fit into it.
    """
    import torch

    headers = [read_header(file) for file in weight_files(base)]
    codes = {code: name for name, code in DTYPES.items()}
    own = {name: codes.get(info.dtype, "") for header in headers for name, info in header.tensors.items()}
    usual = Counter(own.values()).most_common(1)[0][0]
    done: set[int] = set()
    # Names that the files have come first: a tied weight is there by one of its two names only.
    for name, tensor in sorted(model.state_dict(keep_vars=True).items(), key=lambda item: item[0] not in own):
        if id(tensor) in done or not tensor.is_floating_point():
            continue
        done.add(id(tensor))
        wanted: torch.dtype = getattr(torch, dtype or own.get(name, usual))
        tensor.data = tensor.data.to(wanted)
        if not bool(torch.isfinite(tensor.data).all()):
            raise NumericsError("export.not_finite", name=name, dtype=str(wanted).removeprefix("torch."))


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` that takes its place when the block ends well, and goes away when not."""
    folder = target.with_name(f"{UNFINISHED}{target.name}")
    old = target.with_name(f"{UNFINISHED}old-{target.name}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
            if target.exists():
                os.replace(target, old)
            os.replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_write(target.parent, error) from error


def _save(model: Any, base: Path, folder: Path) -> None:
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    # The base's own settings are copied below as they are: some that load would not pass the check of saving.
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in folder.glob("*.safetensors"):
        # The library makes them readable for their owner only.
        shutil.copymode(folder / "config.json", file)
    for pattern in COPIED:
        for file in sorted(base.glob(pattern)):
            if file.is_file():
                place = folder / file.relative_to(base)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, place)


def _compare(folder: Path, target: Path, live: dict[str, Tensor]) -> None:
    """Load the folder as anybody would, and hold every tensor against what is in memory.

    Raises:
        NumericsError: names the tensors.
    """
    import torch

    try:
        read = _load(folder, "auto").state_dict()
    except LoraScriptsError as error:
        raise NumericsError("export.not_read", path=target, reader="transformers", reason=error) from error
    # Where a base mixes number formats, transformers loads all in one of them.
    wrong = [
        name
        for name in live.keys() | read.keys()
        if name not in live or name not in read or not torch.equal(live[name].to(read[name].dtype), read[name])
    ]
    if wrong:
        raise NumericsError("export.tensors_differ", path=target, count=len(wrong), names=some(wrong))
