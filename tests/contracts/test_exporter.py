"""What every exporter must do, whichever its format."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lora_scripts import messages, registry
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.compare import compare
from lora_scripts.contracts import Exporter
from lora_scripts.errors import MachineError, NumericsError
from tests.adapters import language, networks, two_encoders

NAMES = registry.names("exporters")
PICTURES = ("sd", "sdxl")
FAMILIES = {
    "diffusers": PICTURES,
    "gguf": ("causal_lm",),
    "kohya": PICTURES,
    "peft": ("causal_lm", *PICTURES),
}
PAIRS = [(name, family) for name, families in FAMILIES.items() for family in families]
# What lies beside the file once it is written.
BESIDE = {"adapter_model.safetensors": {"adapter_config.json"}}
# What our own reader of LoRA files does not read.
NOT_OURS_TO_READ = {"gguf"}


@dataclass(frozen=True)
class Kind:
    """What a family's exporters are tried with."""

    meta: AdapterMeta
    make: Callable[..., Adapter]
    module: tuple[str, str]
    cases: Mapping[str, tuple[Any, int, float]]


PICTURE_MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
PICTURE_CASES = {
    "everywhere": (networks.EVERYWHERE, 4, 4.0),
    "attention": (networks.ATTENTION, 4, 9.5),
    "one component": ({"unet": networks.EVERYWHERE["unet"]}, 2, 1.0),
    "the other": ({"text_encoder": networks.EVERYWHERE["text_encoder"]}, 3, 7.0),
    "one module": ({"unet": (PICTURE_MODULE,)}, 1, 0.5),
}
TWO_CASES = {
    "everywhere": (two_encoders.EVERYWHERE, 4, 4.0),
    "attention": (two_encoders.KOHYA, 4, 9.5),
    "one component": ({"unet": two_encoders.EVERYWHERE["unet"]}, 2, 1.0),
    "the other": ({"text_encoder_2": two_encoders.EVERYWHERE["text_encoder_2"]}, 3, 7.0),
    "one module": ({"unet": PICTURE_MODULE.replace(".", r"\.")}, 1, 0.5),
}
TEXT_CASES = {
    "everywhere": (language.EVERYWHERE, 4, 4.0),
    "attention": (language.ATTENTION, 4, 9.5),
    "one component": ((r".*mlp.*",), 2, 1.0),
    "the other": ((r".*k_proj",), 3, 7.0),
    "one module": ((language.MODULE,), 1, 0.5),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    meta = language.meta(language.save_base(tmp_path_factory.mktemp("bases") / "tiny-lm"))

    def text(targets: Any = language.EVERYWHERE, **values: Any) -> Adapter:
        return language.adapter(targets, of=meta, **values)

    def large(targets: Any = two_encoders.SOME, **values: Any) -> Adapter:
        return two_encoders.adapter("sdxl", "lora", targets, **values)

    return {
        "sd": Kind(networks.META, networks.adapter, ("unet", PICTURE_MODULE), PICTURE_CASES),
        "sdxl": Kind(two_encoders.META, large, ("unet", PICTURE_MODULE), TWO_CASES),
        "causal_lm": Kind(meta, text, ("language_model", language.MODULE), TEXT_CASES),
    }


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def name(pair: tuple[str, str]) -> str:
    return pair[0]


@pytest.fixture
def exporter(name: str) -> ModuleType:
    return registry.load("exporters", name)


@pytest.fixture
def kind(pair: tuple[str, str], kinds: dict[str, Kind]) -> Kind:
    return kinds[pair[1]]


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_how_many_there_are(kinds: dict[str, Kind]):
    assert NAMES == ("diffusers", "gguf", "kohya", "peft") == tuple(FAMILIES)
    assert sorted(kinds) == sorted(registry.names("families")) and len(PAIRS) == 8


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_functions_of_the_contract(name: str):
    exporter = registry.load("exporters", name)
    wanted = [name for name in vars(Exporter) if not name.startswith("_")]
    assert sorted(wanted) == ["export", "file_name", "read_back", "refuses"]
    for name in wanted:
        parameters = list(inspect.signature(getattr(Exporter, name)).parameters)[1:]
        assert list(inspect.signature(getattr(exporter, name)).parameters) == parameters
    assert exporter.__doc__


def test_files_of_one_folder_have_different_names(kinds: dict[str, Kind]):
    for family, kind in kinds.items():
        own = [name for name, families in FAMILIES.items() if family in families]
        names = [registry.load("exporters", name).file_name(kind.meta) for name in own]
        assert len({*names}) == len(names) == (2 if family == "causal_lm" else 3)
        assert [name for name in names if not name.endswith((".safetensors", ".gguf", "-peft"))] == []


def test_it_takes_its_family_and_refuses_others_in_words(
    name: str, exporter: ModuleType, kind: Kind, kinds: dict[str, Kind]
):
    assert exporter.refuses(kind.meta) is None
    others = [other.meta for family, other in kinds.items() if family not in FAMILIES[name]]
    assert len(others) == 3 - len(FAMILIES[name])
    for meta in [replace(kind.meta, family="a new family"), *others]:
        note = exporter.refuses(meta)
        assert note is not None and meta.family in messages.text(note.code, **note.params)


@pytest.mark.parametrize("case", PICTURE_CASES)
def test_what_is_written_is_what_another_library_reads(
    pair: tuple[str, str], exporter: ModuleType, kind: Kind, case: str, tmp_path: Path
):
    name, family = pair
    assert kind.cases.keys() == PICTURE_CASES.keys()
    targets, rank, alpha = kind.cases[case]
    made = kind.make(targets, rank=rank, alpha=alpha)
    path = tmp_path / exporter.file_name(kind.meta)
    report = exporter.export(made, path)
    assert report.path == path and report.tensors >= 2 * len(made) > 0
    compare(exporter.read_back(path, made), made)
    if name not in NOT_OURS_TO_READ:
        compare(files.load(path, family=family), made)
    assert {file.name for file in tmp_path.iterdir()} == {path.name} | BESIDE.get(path.name, set())


def test_the_same_adapter_gives_the_same_bytes(exporter: ModuleType, kind: Kind, tmp_path: Path):
    made = kind.make(alpha=3.0)
    turned = Adapter({c: dict(reversed(pairs.items())) for c, pairs in reversed(made.pairs.items())}, made.meta)
    found = []
    for number, one in enumerate((made, kind.make(alpha=3.0), turned)):
        folder = tmp_path / str(number)
        folder.mkdir()
        exporter.export(one, folder / exporter.file_name(kind.meta))
        found.append(written(folder))
    first, *others = found
    assert first and len(others) == 2 and all(other == first for other in others)


def test_bytes_do_not_tell_where_they_were_written(exporter: ModuleType, kind: Kind, tmp_path: Path):
    exporter.export(kind.make(), tmp_path / "file")
    assert written(tmp_path)
    for data in written(tmp_path).values():
        assert str(tmp_path).encode() not in data and b"session" not in data


@pytest.mark.parametrize("half", ["down", "up"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(
    exporter: ModuleType, kind: Kind, half: str, value: float, tmp_path: Path
):
    made = kind.make()
    component, module = kind.module
    pair = made.pairs[component][module]
    tensor = getattr(pair, half).clone()
    tensor[0, 0] = value
    pairs = {**made.pairs[component], module: replace(pair, **{half: tensor})}
    broken = Adapter({**made.pairs, component: pairs}, kind.meta)
    exporter.export(made, tmp_path / "file")
    before = written(tmp_path)
    with pytest.raises(NumericsError) as caught:
        exporter.export(broken, tmp_path / "file")
    assert module in str(caught.value)
    assert written(tmp_path) == before


def test_an_adapter_is_not_changed(exporter: ModuleType, kind: Kind, tmp_path: Path):
    made, twin = kind.make(alpha=3.0), kind.make(alpha=3.0)
    exporter.export(made, tmp_path / "file")
    for component, pairs in made.pairs.items():
        for path, pair in pairs.items():
            assert torch.equal(pair.up, twin.pairs[component][path].up) and pair.alpha == 3.0


def test_a_folder_that_does_not_exist_is_an_error_of_the_machine(exporter: ModuleType, kind: Kind, tmp_path: Path):
    with pytest.raises(MachineError):
        exporter.export(kind.make(), tmp_path / "absent" / "file")
