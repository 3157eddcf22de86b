"""Banks of phrases: one group a file, the package's own and a person's beside them.

A bank is a TOML file named as its group: `phrases`, and if wanted `templates` ("a picture of {}"; their embeddings are
averaged), `at_most` phrases of the group in a caption, `order` of the group in it, `contrast` (phrases whose win means
that nothing of the group is to be seen) and `replace = true` (instead of the package's, not beside them). A plain text
file with one phrase a line is a bank too. Beside one of the package's, a person's bank brings more phrases, and what
else it states holds for both; it may then state no phrases at all.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.data.caption_tables import read_text
from lora_scripts.errors import ConfigError, LoraScriptsError
from lora_scripts.files import replace_file, user_cache

if TYPE_CHECKING:
    import numpy

    from lora_scripts.captioners._towers import Towers

OWN = Path(__file__).parent / "banks"
LAST = 1000
KEYS = ("order", "at_most", "templates", "contrast", "phrases", "replace")
MOST_PHRASES = 20_000


@dataclass(frozen=True)
class Bank:
    """One group; see the top of this file."""

    group: str
    phrases: tuple[str, ...]
    order: int = LAST
    at_most: int = 1
    templates: tuple[str, ...] = ("{}",)
    contrast: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """A bank's phrases in a model's space; contrast phrases come last.

    Attributes:
        vectors: (phrases + contrast, D) float32 of norm 1, each the mean of its templates.
    """

    bank: Bank
    vectors: numpy.ndarray = field(repr=False)


def load(more: Sequence[Path] = (), groups: Sequence[str] = (), at_most: Mapping[str, int] | None = None) -> list[Bank]:
    """Return the banks in the order of their groups in a caption.

    Args:
        more: files or folders of a person's own banks.
        groups: only these; empty for all.
        at_most: of groups, how many phrases a caption may have, instead of what the bank says.

    Raises:
        ConfigError: a bank that cannot be understood, or a group that there is not.
    """
    banks = {path.stem: _read(path, None) for path in sorted(OWN.glob("*.toml"))}
    for path in _files(more):
        banks[path.stem] = _read(path, banks.get(path.stem))
    room = at_most or {}
    absent = [group for group in dict.fromkeys([*groups, *room]) if group not in banks]
    if absent:
        raise ConfigError("captioner.no_group", group=", ".join(absent), known=", ".join(banks))
    chosen = [bank for bank in banks.values() if not groups or bank.group in groups]
    chosen = [replace(bank, at_most=room.get(bank.group, bank.at_most)) for bank in chosen]
    return sorted(chosen, key=lambda bank: (bank.order, bank.group))


def fingerprint(banks: Sequence[Bank]) -> str:
    """sha256 over everything in the banks."""
    return hashlib.sha256(repr(banks).encode()).hexdigest()


def embed(towers: Towers, banks: Sequence[Bank]) -> list[Embedded]:
    """Return the banks in the model's space: from the user's cache where these very phrases and weights were there."""
    found = []
    for bank in banks:
        key = hashlib.sha256(f"1 {towers.weights_hash} {bank.templates} {bank.phrases} {bank.contrast}".encode())
        path = user_cache() / "labels" / f"{key.hexdigest()}.safetensors"
        rows = len(bank.phrases) + len(bank.contrast)
        vectors = _cached(path, rows)
        if vectors is None:
            vectors = _averaged(towers, bank)
            _keep(path, vectors)
        found.append(Embedded(bank, vectors))
    return found


def _averaged(towers: Towers, bank: Bank) -> numpy.ndarray:
    """Encode every phrase in every template; the mean of a phrase's, of norm 1."""
    import numpy

    phrases = [*bank.phrases, *bank.contrast]
    texts = [template.replace("{}", phrase) for phrase in phrases for template in bank.templates]
    made = towers.embed_texts(texts).reshape(len(phrases), len(bank.templates), -1).mean(1)
    return (made / numpy.linalg.norm(made, axis=1, keepdims=True)).astype(numpy.float32)


def _cached(path: Path, rows: int) -> numpy.ndarray | None:
    """Return what is in the cache, or None where it is absent or torn."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        vectors = load_file(path)["vectors"]
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    return vectors if vectors.ndim == 2 and len(vectors) == rows and bool((abs(vectors) <= 1.01).all()) else None


def _keep(path: Path, vectors: numpy.ndarray) -> None:
    from safetensors.numpy import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(save({"vectors": vectors})), durable=False)
    except (OSError, LoraScriptsError):
        # A cache that cannot be written costs time only.
        return


def _files(more: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in more:
        if path.is_dir():
            found += sorted(one for one in path.iterdir() if one.suffix.lower() in (".toml", ".txt"))
        elif path.suffix.lower() in (".toml", ".txt"):
            found.append(path)
        else:
            raise ConfigError("captioner.bank_file", path=path)
    return found


def _read(path: Path, before: Bank | None) -> Bank:
    """Return a file's bank, joined to the one before it of the same group where it is not to replace it.

    Raises:
        ConfigError: it cannot be read or understood.
    """
    try:
        text = read_text(path)
    except LoraScriptsError as error:
        raise ConfigError("captioner.bank_broken", path=path, reason=str(error)) from error
    if path.suffix.lower() == ".txt":
        phrases = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return _joined(before, path, {"phrases": phrases})
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("captioner.bank_broken", path=path, reason=error) from error
    strange = [key for key in values if key not in KEYS]
    wrong = [key for key in ("order", "at_most") if type(values.get(key, 0)) is not int or values.get(key, 0) < 0]
    wrong += ["replace"] if not isinstance(values.get("replace", False), bool) else []
    if strange or wrong:
        raise ConfigError("captioner.bank_key", path=path, key=", ".join(strange + wrong), known=", ".join(KEYS))
    return _joined(None if values.get("replace") else before, path, values)


def _joined(before: Bank | None, path: Path, values: Mapping[str, Any]) -> Bank:
    """Return a bank with the phrases of `values` in front, and what else they state instead."""
    bank = before or Bank(path.stem, ())
    templates = _phrases(path, values["templates"]) if "templates" in values else bank.templates
    if not all(template.count("{}") == 1 for template in templates):
        raise ConfigError("captioner.bank_template", path=path)
    # A file that states something else of a group that there is needs no phrases.
    may_lack = before is not None and "phrases" not in values
    own = _phrases(path, values.get("phrases", []), empty=may_lack)
    contrast = _phrases(path, values.get("contrast", []), empty=True)
    return replace(
        bank,
        phrases=tuple(dict.fromkeys([*own, *bank.phrases])),
        order=values.get("order", bank.order),
        at_most=values.get("at_most", bank.at_most),
        templates=templates,
        contrast=tuple(dict.fromkeys([*contrast, *bank.contrast])),
    )


def _phrases(path: Path, values: Any, *, empty: bool = False) -> tuple[str, ...]:
    """Return distinct phrases on one line each."""
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise ConfigError("captioner.bank_phrases", path=path)
    found = tuple(dict.fromkeys(" ".join(value.split()) for value in values))
    if (not found and not empty) or len(found) > MOST_PHRASES:
        raise ConfigError("captioner.bank_phrases", path=path)
    return found
