"""LoRA files that were made to do harm, or damaged in odd places: one sentence, in no time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_scripts.adapters import files
from lora_scripts.errors import BaseModelError, ConfigError
from lora_scripts.lora_tools.convert import Order, convert
from lora_scripts.lora_tools.sources import Named
from tests.adapters.test_files import write
from tests.adapters.test_files_refused import KOHYA, PLAIN, pair, path_pair

SETTINGS = {
    "a rank without end": {"unet.r": float("inf"), "unet.lora_alpha": 2},
    "a pattern with a flag inside": {"unet.r": 4, "unet.alpha_pattern": {"(?i)foo": 3}},
    "a pattern that takes for ever": {"unet.r": 4, "unet.alpha_pattern": {"([a-z_0-9.]+)+!": 3}},
    "a pattern that takes very long": {"unet.r": 4, "unet.rank_pattern": {".*.*.*.*.*.*!": 3}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_a_header(settings: dict[str, Any], tmp_path: Path):
    path = write(tmp_path / "file.safetensors", path_pair(PLAIN), {"lora_adapter_metadata": json.dumps(settings)})
    started = time.perf_counter()
    with pytest.raises(BaseModelError) as caught:
        files.load(path)
    assert caught.value.code == "adapter.bad_config" and time.perf_counter() - started < 5


@pytest.mark.parametrize("shape", [(2,), (0,), (4, 64)])
def test_an_alpha_that_is_no_number(shape: tuple[int, ...], tmp_path: Path):
    path = write(tmp_path / "file.safetensors", pair(KOHYA) | {f"{KOHYA}.alpha": torch.ones(shape)})
    with pytest.raises(BaseModelError) as caught:
        files.load(path)
    assert caught.value.code == "adapter.bad_alpha" and str(list(shape)) in str(caught.value)


def test_a_name_that_no_file_can_have():
    with pytest.raises(BaseModelError) as caught:
        files.inspect(Path("n" * 5000))
    assert caught.value.code == "adapter.unreadable"


PLACES = {
    "a device": ("peft", "/dev/null", "lora.occupied_otherwise"),
    "a name that is no text": ("kohya", "d\udcff.safetensors", "adapter.bad_name"),
}


@pytest.mark.parametrize(("to", "place", "code"), PLACES.values(), ids=PLACES)
def test_places_to_write_to(to: str, place: str, code: str, tmp_path: Path):
    path = write(tmp_path / "file.safetensors", pair(KOHYA))
    output = Path(place) if place.startswith("/") else tmp_path / place
    with pytest.raises(ConfigError) as caught:
        convert(Order(Named(path), to, output), lambda code, **params: None)
    assert caught.value.code == code


def test_a_base_is_never_overwritten(tmp_path: Path):
    path = write(tmp_path / "file.safetensors", pair(KOHYA))
    base = write(tmp_path / "base.safetensors", pair(KOHYA))
    before = base.read_bytes()
    with pytest.raises(ConfigError) as caught:
        convert(Order(Named(path), "kohya", base, base=str(base), overwrite=True), lambda code, **params: None)
    assert caught.value.code == "lora.output_is_input" and base.read_bytes() == before
