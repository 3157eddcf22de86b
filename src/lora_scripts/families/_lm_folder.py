"""A language model as a folder (or a hub id): recognised from its JSON files and headers, loaded by transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters.base_hash import hash_of_folder
from lora_scripts.adapters.names import some
from lora_scripts.adapters.safetensors_file import read_header
from lora_scripts.contracts import Base, Placement
from lora_scripts.errors import BaseModelError, MachineError
from lora_scripts.families import _held, _hub, _rows
from lora_scripts.families._chat import Renderer
from lora_scripts.files import sha256_of

if TYPE_CHECKING:
    from torch import nn

SETTINGS = ("config.json", "model_index.json")
FILES = ("*.json", "*.jinja", "tokenizer.model", "model*.safetensors")
TOKENIZER_FILES = tuple(
    """
    tokenizer.json tokenizer_config.json chat_template.jinja special_tokens_map.json tokenizer.model vocab.json
    merges.txt generation_config.json added_tokens.json
    """.split()
)
ENDINGS = ("ForCausalLM", "LMHeadModel")
MAX_JSON_BYTES = 4 << 20
DEFAULT_CONTEXT = 2048


def recognise(path: Path) -> Base | None:
    """Return what a folder or hub id is, or None where it is no transformers model.

    Raises:
        BaseModelError: it is one, but no causal language model, or without readable weights or tokenizer.
        MachineError: a hub id that cannot be had.
    """
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            raise BaseModelError("llm.gguf_base", path=path)
        return None
    folder, reference = path, str(path.resolve())
    if not path.is_dir():
        reference = path.as_posix()
        folder = _hub.fetch(reference, SETTINGS)
    if (folder / "model_index.json").is_file():
        return None
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise BaseModelError("base.is_lora", path=path)
        return None
    config = _json(folder / "config.json")
    _refuse_others(path, config)
    if (folder / "adapter_config.json").is_file():
        # Transformers would load base and adapter as one.
        raise BaseModelError("llm.base_with_adapter", path=path)
    if not path.is_dir():
        folder = _hub.fetch(reference, FILES)
    sizes = [config.get(key) for key in ("max_position_embeddings", "n_positions", "n_ctx")]
    context = next((size for size in sizes if isinstance(size, int) and size > 0), DEFAULT_CONTEXT)
    return Base(
        name=reference if not path.is_dir() else folder.resolve().name,
        path=folder,
        family="causal_lm",
        variant=str(config.get("model_type", "")),
        prediction_type="next token",
        resolution=0,
        multiple=1,
        max_tokens=context,
        parameters={"language_model": _parameters(folder)},
        webui=False,
        reference=reference,
    )


def _refuse_others(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what config.json says is no causal language model, or one that nothing can be trained on."""
    said = config.get("architectures")
    kinds = [str(kind) for kind in said] if isinstance(said, list) else []
    if not any(kind.endswith(ENDINGS) for kind in kinds):
        raise BaseModelError("llm.not_causal", path=path, found=", ".join(kinds) or config.get("model_type", "-"))
    if config.get("quantization_config"):
        raise BaseModelError("llm.quantised_base", path=path)


def _parameters(folder: Path) -> int:
    """Count the parameters in the weights' headers."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])
        if pickles:
            raise BaseModelError("base.pickle", path=pickles[0])
        raise BaseModelError("llm.no_weights", path=folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise BaseModelError("llm.no_tokenizer", path=folder)
    total = 0
    for file in files:
        for tensor in read_header(file).tensors.values():
            count = 1
            for side in tensor.shape:
                count *= side
            total += count
    return total


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError("base.broken_json", path=path) from error
    return found


def renderer(base: Base) -> Renderer:
    """Return the tokenizer with its chat template."""
    return _renderer(base.path)


@lru_cache(maxsize=4)
def _renderer(folder: Path) -> Renderer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # A broken tokenizer raises anything.
        raise BaseModelError("base.cannot_load", path=folder, reason=_first_line(error)) from error
    if not tokenizer.is_fast:
        raise BaseModelError("llm.slow_tokenizer", path=folder)
    ends: Any = []
    if (folder / "generation_config.json").is_file():
        ends = _json(folder / "generation_config.json").get("eos_token_id")
    several = ends if isinstance(ends, list) else [ends]
    return Renderer(tokenizer, folder, [end for end in several if isinstance(end, int)])


def tokenizer_hash(base: Base) -> str:
    """sha256 over the files that decide the tokens."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (base.path / name).is_file():
            digest.update(f"{name}:{sha256_of(base.path / name)}\n".encode())
    return digest.hexdigest()


def weights_hash(base: Base) -> str:
    """sha256 over the base's weight files."""
    return hash_of_folder(base.path)


def skeleton(base: Base) -> nn.Module:
    """Build the model on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"), _in_words(base):
        config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def model(base: Base, placement: Placement) -> Any:
    """Load the weights, frozen, with attention that knows rows."""
    from transformers import AutoModelForCausalLM

    _rows.register()
    more: dict[str, Any] = {}
    if placement.quantisation == "nf4":
        more = {"quantization_config": _four_bit(placement), "device_map": {"": placement.device}}
    with _in_words(base):
        found, told = AutoModelForCausalLM.from_pretrained(
            base.path,
            dtype=placement.base_dtype,
            use_safetensors=True,
            local_files_only=True,
            # Left out, it would make transformers ask at the console whether to run what lies in the folder.
            trust_remote_code=False,
            attn_implementation="sdpa",
            # Tensors that are absent or of another shape would get random values: they are refused by name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **more,
        )
    absent = [*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])]
    if absent:
        raise BaseModelError("base.part_missing", path=base.path, part=some(absent))
    if placement.quantisation == "fp8":
        _check_finite(base, found)
        _held.hold(found, "fp8", placement.base_dtype, placement.device)
    if placement.quantisation != "nf4":
        found = found.to(placement.device)
    for module in found.modules():
        # On a CPU, bitsandbytes repacks the weights of a module in evaluation mode for a product that has no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    _check_finite(base, found)
    found.set_attn_implementation(_rows.NAME)
    return found.requires_grad_(False)


def _four_bit(placement: Placement) -> Any:
    """NF4 with double quantisation (arXiv:2305.14314, section 3)."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MachineError("llm.no_extra", what="base_precision: nf4", extra="quantized") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.base_dtype,
    )


def _check_finite(base: Base, found: Any) -> None:
    import torch

    for name, tensor in found.named_parameters():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BaseModelError("base.weights_not_finite", path=base.path, name=name)


@contextmanager
def _in_words(base: Base) -> Iterator[None]:
    """Turn what transformers raises about a broken or foreign folder into one sentence."""
    try:
        yield
    except (MemoryError, KeyboardInterrupt, BaseModelError, MachineError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        if _needs_its_own_code(base):
            raise BaseModelError("llm.remote_code", path=base.path) from error
        raise BaseModelError("base.cannot_load", path=base.path, reason=_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200].rstrip(" .")


def _needs_its_own_code(base: Base) -> bool:
    """Say whether the base is of a kind that only code in its own folder knows."""
    from transformers import CONFIG_MAPPING

    return bool(settings(base).get("auto_map")) and base.variant not in CONFIG_MAPPING


@contextmanager
def attention(model: Any, kind: str) -> Iterator[None]:
    """Use another attention for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation(kind)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def vocabulary(base: Base) -> int:
    """Return how many tokens the base knows; 0 where it does not say."""
    config = settings(base)
    inner = config.get("text_config")
    size = config.get("vocab_size") or (inner.get("vocab_size") if isinstance(inner, dict) else None)
    return size if isinstance(size, int) else 0


def settings(base: Base) -> Mapping[str, Any]:
    """Return config.json."""
    return _json(base.path / "config.json")
