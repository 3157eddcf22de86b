"""GGUF: one file that llama.cpp, and what is built on it, adds to a GGUF base.

    general.architecture, general.type "adapter", adapter.type "lora", adapter.lora.alpha
    blk.<n>.attn_q.weight.lora_a   (r, i)
    blk.<n>.attn_q.weight.lora_b   (o, r)

Names are llama.cpp's, by the `gguf` package's own table. Of bases of the kind llama, llama.cpp orders the rows of q and
k in its own way: a head's two halves are woven into each other, so `lora_b` of these is woven likewise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters import base_folder
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.compare import check_finite
from lora_scripts.adapters.files import LANGUAGE_FAMILY
from lora_scripts.adapters.names import LANGUAGE_MODEL, some
from lora_scripts.adapters.uniform import settings, uniform
from lora_scripts.contracts import Report
from lora_scripts.data.record import Note
from lora_scripts.errors import BaseModelError, NumericsError
from lora_scripts.files import replace_file

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = (LANGUAGE_FAMILY,)
# The format that holds what this one cannot.
PAIRS_ONLY = "peft"
# What file systems do not take in a name.
FORBIDDEN = re.compile(r'[:<>/\\|?*"\x00-\x1f]')
MAX_NAME_BYTES = 190

# model_type of the base's config -> the name of llama.cpp's architecture, and whether it weaves the rows of q and k.
ARCHITECTURES = {
    "llama": ("LLAMA", True),
    "mistral": ("LLAMA", True),
    "qwen2": ("QWEN2", False),
    "qwen3": ("QWEN3", False),
    "gemma2": ("GEMMA2", False),
    "phi3": ("PHI3", False),
}


@dataclass(frozen=True)
class Layout:
    """How llama.cpp holds a base.

    Attributes:
        architecture: a name of gguf's MODEL_ARCH.
        heads: last name of a module whose rows are woven -> how many heads its rows belong to.
    """

    architecture: str
    heads: Mapping[str, int]


def file_name(meta: AdapterMeta) -> str:
    """Return "<name>.gguf"."""
    return f"{meta.name}.gguf"


def refuses(meta: AdapterMeta) -> Note | None:
    """Refuse other families, bases that llama.cpp holds in a way not known here, and names that are no file names."""
    if meta.family not in FAMILIES:
        return Note("adapter.no_format", {"format": "gguf", "family": meta.family})
    if meta.kind != "lora":
        return Note("adapter.no_kind", {"format": "gguf", "kind": meta.kind, "formats": PAIRS_ONLY})
    spare = meta.name.strip(" .") != meta.name or not meta.name
    if spare or FORBIDDEN.search(meta.name) or len(meta.name.encode()) > MAX_NAME_BYTES:
        return Note("export.bad_name", {"name": meta.name})
    found = _layout(meta)
    return found if isinstance(found, Note) else None


def _layout(meta: AdapterMeta) -> Layout | Note:
    """Return how llama.cpp holds the base, or why that is not known."""
    folder = base_folder.find(meta.base_reference)
    config = base_folder.config(folder) if folder else {}
    variant = meta.variant or str(config.get("model_type") or "")
    if not variant:
        return Note("export.no_base", {"base": meta.base_reference or "-"})
    if variant not in ARCHITECTURES:
        return Note("export.gguf_base", {"variant": variant, "known": ", ".join(ARCHITECTURES)})
    architecture, is_woven = ARCHITECTURES[variant]
    if not is_woven:
        return Layout(architecture, {})
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int):
        return Note("export.no_base", {"base": meta.base_reference or "-"})
    key_heads = config.get("num_key_value_heads")
    return Layout(architecture, {"q_proj": heads, "k_proj": key_heads if isinstance(key_heads, int) else heads})


def _known_layout(meta: AdapterMeta) -> Layout:
    found = _layout(meta)
    if isinstance(found, Note):
        raise BaseModelError(found.code, **found.params)
    return found


def names(architecture: str, paths: Iterable[str]) -> dict[str, str]:
    """Return llama.cpp's name of every module's weight by its path.

    Raises:
        BaseModelError: modules that have none, or share one; at most ten are told.
    """
    import gguf

    paths = sorted(paths)
    blocks = 1 + max((int(number) for path in paths for number in re.findall(r"\.(\d+)\.", path)), default=0)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], blocks)
    found = {path: table.get_name(f"{path}.weight", try_suffixes=(".weight",)) for path in paths}
    # Where the output layer shares the embedding's weights, llama.cpp has no tensor for it.
    given = {path: name for path, name in found.items() if name and name.startswith("blk.")}
    times = Counter(given.values())
    left = [path for path in paths if times[given.get(path, "")] != 1]
    if left:
        raise BaseModelError("export.gguf_modules", count=len(left), names=some(left))
    return given


def weave(rows: Tensor, heads: int) -> Tensor:
    """Order the rows of q or k as llama.cpp does: (o, r), the two halves of every head alternating."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def unweave(rows: Tensor, heads: int) -> Tensor:
    """Undo `weave`."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def export(adapter: Adapter, path: Path) -> Report:
    """Write the file; the same adapter gives the same bytes.

    Raises:
        NumericsError: a value is not finite.
        BaseModelError: the base is not known here, or a module has no place in llama.cpp.
        MachineError: no space, or not writable.
    """
    check_finite(adapter)
    made = uniform(adapter)
    layout = _known_layout(adapter.meta)
    pairs = made.pairs[LANGUAGE_MODEL]
    tensors: dict[str, Any] = {}
    for module, name in names(layout.architecture, pairs).items():
        heads = layout.heads.get(module.rpartition(".")[2])
        up = pairs[module].up
        tensors[f"{name}.lora_a"] = pairs[module].down.contiguous().numpy()
        tensors[f"{name}.lora_b"] = (weave(up, heads) if heads else up).contiguous().numpy()
    alpha = settings(made)[1]
    # The package opens files by name itself: this one is there already, and takes the place of the old one when whole.
    replace_file(path, lambda file: _write(Path(file.name), layout.architecture, adapter.meta.name, alpha, tensors))
    return Report(path, len(tensors))


def _write(path: Path, architecture: str, name: str, alpha: int, tensors: Mapping[str, Any]) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[architecture]])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    writer.add_name(name)
    for key, tensor in sorted(tensors.items()):
        writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_back(path: Path, adapter: Adapter) -> Adapter:
    """Read the file by gguf's reader, undoing the order of rows and the names.

    Raises:
        NumericsError: it is no adapter for this base, or holds tensors that belong to no module.
    """
    import torch

    layout = _known_layout(adapter.meta)
    alpha, tensors = _read(path, layout.architecture)
    pairs = {}
    for module, name in names(layout.architecture, adapter.pairs[LANGUAGE_MODEL]).items():
        down, up = tensors.pop(f"{name}.lora_a", None), tensors.pop(f"{name}.lora_b", None)
        if down is not None and up is not None:
            heads = layout.heads.get(module.rpartition(".")[2])
            rows = torch.from_numpy(up)
            pairs[module] = LoraPair(torch.from_numpy(down), unweave(rows, heads) if heads else rows, alpha)
    if tensors:
        raise NumericsError("export.left_over", path=path, reader="gguf", count=len(tensors), names=some(tensors))
    return Adapter({LANGUAGE_MODEL: pairs}, adapter.meta)


def is_adapter(path: Path) -> bool:
    """Say whether a file is a GGUF adapter, and no model or anything else."""
    import gguf

    try:
        field = gguf.GGUFReader(path).get_field(gguf.Keys.General.TYPE)
        return field is not None and field.contents() == gguf.GGUFType.ADAPTER
    except (OSError, ValueError, KeyError, IndexError):
        return False


def _read(path: Path, architecture: str) -> tuple[float, dict[str, Any]]:
    import gguf
    import numpy

    try:
        reader = gguf.GGUFReader(path)
        said = {key: field.contents() for key, field in reader.fields.items()}
        wanted = {
            gguf.Keys.General.ARCHITECTURE: gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[architecture]],
            gguf.Keys.General.TYPE: gguf.GGUFType.ADAPTER,
            gguf.Keys.Adapter.TYPE: "lora",
        }
        wrong = {key: said.get(key) for key, value in wanted.items() if said.get(key) != value}
        if wrong:
            raise ValueError(f"{wrong}")
        # Copies: the reader maps the file, which must be replaceable afterwards.
        return float(said[gguf.Keys.Adapter.LORA_ALPHA]), {t.name: numpy.array(t.data) for t in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise NumericsError("export.not_read", path=path, reader="gguf", reason=error) from error
