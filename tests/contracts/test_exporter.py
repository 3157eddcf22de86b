"""What every exporter must do, whichever its format."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lora_scripts import messages, registry
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.compare import compare
from lora_scripts.contracts import Exporter
from lora_scripts.errors import MachineError, NumericsError
from tests.adapters.networks import ATTENTION, EVERYWHERE, META, adapter

NAMES = registry.names("exporters")
MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(params=NAMES)
def exporter(request: pytest.FixtureRequest) -> ModuleType:
    return registry.load("exporters", request.param)


def test_how_many_there_are():
    assert NAMES == ("diffusers", "kohya")


def test_it_has_the_functions_of_the_contract(exporter: ModuleType):
    wanted = [name for name in vars(Exporter) if not name.startswith("_")]
    assert sorted(wanted) == ["export", "file_name", "read_back", "refuses"]
    for name in wanted:
        parameters = list(inspect.signature(getattr(Exporter, name)).parameters)[1:]
        assert list(inspect.signature(getattr(exporter, name)).parameters) == parameters
    assert exporter.__doc__


def test_files_of_one_folder_have_different_names():
    names = {registry.load("exporters", name).file_name(META) for name in NAMES}
    assert len(names) == len(NAMES) and all(name.endswith(".safetensors") for name in names)


def test_it_takes_its_family_and_refuses_others_in_words(exporter: ModuleType):
    assert exporter.refuses(META) is None
    note = exporter.refuses(replace(META, family="a new family"))
    assert note is not None and "a new family" in messages.text(note.code, **note.params)


CASES = {
    "everywhere": (EVERYWHERE, 4, 4.0),
    "attention": (ATTENTION, 4, 9.5),
    "unet only": ({"unet": EVERYWHERE["unet"]}, 2, 1.0),
    "text only": ({"text_encoder": EVERYWHERE["text_encoder"]}, 3, 7.0),
    "one module": ({"unet": (rf"{MODULE}",)}, 1, 0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_another_library_reads(exporter: ModuleType, case: str, tmp_path: Path):
    targets, rank, alpha = CASES[case]
    made = adapter(targets, rank=rank, alpha=alpha)
    path = tmp_path / exporter.file_name(META)
    report = exporter.export(made, path)
    assert report.path == path and report.tensors >= 2 * len(made) > 0
    compare(exporter.read_back(path, made), made)
    compare(files.load(path), made)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_same_adapter_gives_the_same_bytes(exporter: ModuleType, tmp_path: Path):
    made = adapter(alpha=3.0)
    turned = Adapter({c: dict(reversed(pairs.items())) for c, pairs in reversed(made.pairs.items())}, made.meta)
    for number, one in enumerate((made, adapter(alpha=3.0), turned)):
        exporter.export(one, tmp_path / str(number))
    first, *others = [(tmp_path / str(number)).read_bytes() for number in range(3)]
    assert len(others) == 2 and all(other == first for other in others)


def test_bytes_do_not_tell_where_they_were_written(exporter: ModuleType, tmp_path: Path):
    exporter.export(adapter(), tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    assert str(tmp_path).encode() not in data and b"session" not in data


@pytest.mark.parametrize("half", ["down", "up"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(exporter: ModuleType, half: str, value: float, tmp_path: Path):
    made = adapter()
    pair = made.pairs["unet"][MODULE]
    tensor = getattr(pair, half).clone()
    tensor[0, 0] = value
    broken = Adapter({**made.pairs, "unet": {**made.pairs["unet"], MODULE: replace(pair, **{half: tensor})}}, META)
    exporter.export(made, tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    with pytest.raises(NumericsError) as caught:
        exporter.export(broken, tmp_path / "file")
    assert MODULE in str(caught.value) and (tmp_path / "file").read_bytes() == before


def test_an_adapter_is_not_changed(exporter: ModuleType, tmp_path: Path):
    made, twin = adapter(alpha=3.0), adapter(alpha=3.0)
    exporter.export(made, tmp_path / "file")
    for component, pairs in made.pairs.items():
        for path, pair in pairs.items():
            assert torch.equal(pair.up, twin.pairs[component][path].up) and pair.alpha == 3.0


def test_a_folder_that_does_not_exist_is_an_error_of_the_machine(exporter: ModuleType, tmp_path: Path):
    with pytest.raises(MachineError):
        exporter.export(adapter(), tmp_path / "absent" / "file")
