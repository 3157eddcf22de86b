"""Each kind of update, in each format, for each family: a round trip, or a refusal in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_scripts import messages, registry
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.compare import compare
from tests.adapters import language, two_encoders

KINDS, EXPORTERS, FAMILIES = (registry.names(kind) for kind in ("adapters", "exporters", "families"))
READ, NO_KIND, NO_FORMAT = "read again", "adapter.no_kind", "adapter.no_format"
PICTURES, TEXT = ("sd", "sdxl"), "causal_lm"

# Format -> kind of update -> what becomes of it, for pictures and for language models.
WANTED = {
    "kohya": ({"lora": READ, "dora": READ, "loha": READ, "lokr": READ}, NO_FORMAT),
    "diffusers": ({"lora": READ, "dora": READ, "loha": NO_KIND, "lokr": NO_KIND}, NO_FORMAT),
    "peft": ({"lora": READ, "dora": READ, "loha": READ, "lokr": READ}, READ),
    "gguf": (NO_FORMAT, {"lora": READ, "dora": NO_KIND, "loha": NO_KIND, "lokr": NO_KIND}),
}


def wanted(exporter: str, kind: str, family: str) -> str:
    of_family = WANTED[exporter][0 if family in PICTURES else 1]
    return of_family if isinstance(of_family, str) else of_family[kind]


CASES = [(kind, exporter, family) for kind in KINDS for exporter in EXPORTERS for family in FAMILIES]


def made(kind: str, family: str, base: Path, **values: Any) -> Adapter:
    """Return a random adapter of the family's tiny model."""
    import torch

    if family != TEXT:
        return two_encoders.adapter(family, kind, **values)
    generator = torch.Generator().manual_seed(8)
    layers = {path: layer for path, layer in language.model().named_modules() if path.endswith(("q_proj", "down_proj"))}
    updates = {p: two_encoders.update(kind, layer.weight, 4, 8.0, generator) for p, layer in layers.items()}
    return Adapter({"language_model": updates}, language.meta(base, kind=kind))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save_base(tmp_path_factory.mktemp("bases") / "tiny-lm")


def test_the_table_is_whole():
    assert KINDS == ("dora", "loha", "lokr", "lora") and FAMILIES == (TEXT, *PICTURES)
    assert sorted(WANTED) == sorted(EXPORTERS) and len(CASES) == 4 * 4 * 3 == 48
    found = [wanted(exporter, kind, family) for kind, exporter, family in CASES]
    assert (found.count(READ), found.count(NO_KIND), found.count(NO_FORMAT)) == (25, 7, 16)


@pytest.mark.parametrize(("kind", "name", "family"), CASES)
def test_a_round_trip_or_a_refusal_in_words(kind: str, name: str, family: str, base: Path, tmp_path: Path):
    exporter, adapter = registry.load("exporters", name), made(kind, family, base)
    assert {update.kind for updates in adapter.pairs.values() for update in updates.values()} == {kind}
    note = exporter.refuses(adapter.meta)
    if wanted(name, kind, family) != READ:
        assert note is not None and note.code == wanted(name, kind, family)
        sentence = messages.text(note.code, **note.params)
        assert name in sentence and (kind if note.code == NO_KIND else family) in sentence
        return
    assert note is None
    path = tmp_path / exporter.file_name(adapter.meta)
    exporter.export(adapter, path)
    compare(exporter.read_back(path, adapter), adapter)
    if name == "gguf":
        return
    loaded = files.load(path, family=family)
    compare(loaded, adapter)
    assert (loaded.meta.family, loaded.meta.kind, loaded.meta.name) == (family, kind, adapter.meta.name)
