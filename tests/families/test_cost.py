"""Families' work on tensors without values: the same bytes as the real work takes, and no memory of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_scripts import registry
from lora_scripts.adapters.inject import inject
from lora_scripts.contracts import Batch, Placement
from lora_scripts.data.record import PictureExample
from lora_scripts.train.memory import Ledger, without_values
from tests import tiny

CPU = torch.device("cpu")
SIZE = (48, 32)
ROWS = 3


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """A tiny base of every family that draws."""
    folder = tmp_path_factory.mktemp("bases")
    made = [tiny.tiny_sd_folder(folder / "one"), tiny.tiny_sdxl_folder(folder / "two")]
    found = {}
    for path in made:
        for name in registry.names("families"):
            base = registry.load("families", name).plugin.recognise(path)
            if base is not None:
                found[name] = base
                break
    drawing = [n for n in registry.names("families") if registry.load("families", n).plugin.reads == "pictures"]
    assert sorted(found) == drawing
    assert len(drawing) >= 2
    return found


def example(tmp_path: Path) -> PictureExample:
    path = tiny.tiny_pictures(tmp_path, 1, SIZE) / "disc0.png"
    from lora_scripts.data.record import Dataset, Sizes

    scan = registry.load("readers", "pictures").read([Dataset(path=path.parent)], Sizes((48,), 8), max_bad_fraction=0.1)
    return scan.examples[0]


class Real(TorchDispatchMode):
    """The same ledger, over tensors that have values."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(CPU)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.ledger.see(made)
        return made


def step(family: Any, one: PictureExample, entry: Mapping[str, Any], dtype: torch.dtype, ledger: Ledger) -> list[int]:
    """Return what a forward pass keeps, and the peak of the whole step."""
    batch = Batch(
        weight=float(ROWS),
        weights=torch.ones(ROWS),
        tensors=family.collate([one] * ROWS, [entry] * ROWS),
        generators=[torch.Generator().manual_seed(1) for _ in range(ROWS)],
        ids=["a"] * ROWS,
    )
    objective = registry.load("objectives", "denoise")
    before = ledger.reset()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = objective.build(objective.Config()).loss(family, batch).total
    kept = ledger.live - before
    loss.backward()
    return [kept, ledger.peak - before]


def with_pairs(family: Any) -> None:
    family.train_components(("unet",))
    patterns = family.target_presets["attention"]["unet"]
    family.injected(inject({"unet": family.unet}, targets={"unet": patterns}, rank=2, alpha=2, dropout=0.0, seed=1))


SETTINGS = [
    pytest.param(0, torch.float32, False, "", id="first"),
    pytest.param(0, torch.float32, True, "", id="first-again"),
    pytest.param(0, torch.bfloat16, False, "", id="first-bf16"),
    pytest.param(0, torch.bfloat16, True, "fp8", id="first-bf16-again-fp8"),
    pytest.param(1, torch.bfloat16, False, "fp8", id="second-bf16-fp8"),
]


@pytest.mark.parametrize(("family", "dtype", "again", "quantisation"), SETTINGS)
def test_a_step_counts_what_a_real_one_takes(
    family: int, dtype: torch.dtype, again: bool, quantisation: str, bases: Mapping[str, Any], tmp_path: Path
):
    name = sorted(bases)[family]
    plugin, base = registry.load("families", name).plugin, bases[name]
    placement = Placement(CPU, dtype, torch.float32, gradient_checkpointing=again, quantisation=quantisation)
    one = example(tmp_path)
    rehearsal = plugin.rehearsal(base, placement)
    with_pairs(rehearsal.family)
    with without_values(CPU) as ledger:
        rehearsal.embody()
        entry = rehearsal.entry(one)
        shapes = {part: tensor.shape for part, tensor in entry.items()}
        counted = step(rehearsal.family, one, entry, dtype, ledger)
    live = plugin.load(base, placement)
    with_pairs(live)
    pieces = live.encode(live.requests(one, live.draw(one, Random(1))))
    entry = {part: tensor for piece in pieces for part, tensor in piece.items()}
    assert {part: tensor.shape for part, tensor in entry.items()} == shapes
    real = Real()
    for tensor in [*live.unet.parameters(), *live.unet.buffers()]:
        real.ledger.see(tensor)
    with real:
        measured = step(live, one, entry, dtype, real.ledger)
    assert counted[0] > 100_000
    # Constants of a few bytes are made in another order.
    assert counted == pytest.approx(measured, rel=0.005)


def test_what_is_kept_is_what_autograd_saves(bases: Mapping[str, Any], tmp_path: Path):
    """Another way to count the same: the storages that autograd's nodes hold, without parameters."""
    name = next(iter(bases))
    placement = Placement(CPU, torch.float32, torch.float32)
    one = example(tmp_path)
    rehearsal = registry.load("families", name).plugin.rehearsal(bases[name], placement)
    with_pairs(rehearsal.family)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with without_values(CPU) as ledger:
        rehearsal.embody()
        entry = rehearsal.entry(one)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            kept = step(rehearsal.family, one, entry, torch.float32, ledger)[0]
    weights = {p.untyped_storage()._cdata for p in rehearsal.family.unet.parameters()}
    autograd = sum(size for storage, size in saved.items() if storage not in weights)
    # The batch, and a few tensors that only live to the end of the loss.
    assert autograd == pytest.approx(kept, rel=0.05)


def test_checkpointing_and_few_bits_show(bases: Mapping[str, Any], tmp_path: Path):
    one = example(tmp_path)
    found = {}
    for again in (False, True):
        for quantisation in ("", "fp8", "nf4"):
            placement = Placement(CPU, torch.bfloat16, torch.float32, "auto", again, quantisation)
            rehearsal = registry.load("families", "sd").plugin.rehearsal(bases["sd"], placement)
            with_pairs(rehearsal.family)
            with without_values(CPU) as ledger:
                rehearsal.embody()
                standing = ledger.live
                kept = step(rehearsal.family, one, rehearsal.entry(one), torch.bfloat16, ledger)[0]
            found[again, quantisation] = standing, kept
    assert found[True, ""][1] < 0.6 * found[False, ""][1]
    assert found[False, "nf4"][0] < found[False, "fp8"][0] < found[False, ""][0]
    assert found[False, "fp8"][1] <= found[False, ""][1]


def test_encoding_and_drawing_are_counted(bases: Mapping[str, Any], tmp_path: Path):
    one = example(tmp_path)
    for name, base in bases.items():
        placement = Placement(CPU, torch.float32, torch.float32)
        rehearsal = registry.load("families", name).plugin.rehearsal(base, placement)
        with without_values(CPU) as ledger:
            rehearsal.embody()
            for work in (rehearsal.encode, rehearsal.draw):
                before = ledger.reset()
                work(one)
                width, height = one.bucket
                # At full size a network for pictures has 32 channels here.
                assert ledger.peak - before > width * height * 32 * 4
        assert rehearsal.waiting() == sorted(rehearsal.waiting(), reverse=True)
        assert len(rehearsal.waiting()) > 8
        assert rehearsal.reading() == 0
        halved = Placement(CPU, torch.bfloat16, torch.float32)
        assert registry.load("families", name).plugin.rehearsal(base, halved).reading() == 0
        few = Placement(CPU, torch.bfloat16, torch.float32, quantisation="fp8")
        held = registry.load("families", name).plugin.rehearsal(base, few)
        # Its layers are there in 16 bits before they are there in 8.
        assert 0 < held.reading() < base.parameters["unet"] * 2
