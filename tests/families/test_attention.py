"""The attention rule: which kernel, decided where recomputation decides alike."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from lora_scripts.adapters.inject import inject
from lora_scripts.contracts import Batch, Placement
from lora_scripts.families import _attention
from lora_scripts.families.sd import StableDiffusion
from tests import tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FREE = set(_cur_sdpa_kernel_backends())


def kernels(wish: str, device: torch.device, positions: int, dtype: torch.dtype) -> set[SDPBackend]:
    with _attention.chosen(wish, device, positions, dtype):
        return set(_cur_sdpa_kernel_backends())


@pytest.mark.parametrize(
    ("wish", "device", "positions", "dtype", "math_only"),
    [
        ("auto", CPU, 64, torch.bfloat16, True),
        ("auto", CPU, 128, torch.float16, True),
        ("auto", CPU, 129, torch.bfloat16, False),
        ("auto", CPU, 64, torch.float32, False),
        ("auto", CPU, 4096, torch.float32, False),
        ("auto", CUDA, 64, torch.bfloat16, False),
        ("math", CPU, 4096, torch.float32, True),
        ("math", CUDA, 4096, torch.float16, True),
    ],
)
def test_rule(wish, device, positions, dtype, math_only):
    found = kernels(wish, device, positions, dtype)
    assert found == ({SDPBackend.MATH} if math_only else FREE)


def test_flash_keeps_a_way_for_what_flash_cannot_do():
    found = kernels("flash", CPU, 64, torch.bfloat16)
    assert {SDPBackend.FLASH_ATTENTION, SDPBackend.MATH} <= found


def test_mixed_precision_decides_the_format():
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels("auto", CPU, 64, torch.float32) == {SDPBackend.MATH}
    assert kernels("auto", CPU, 64, torch.float32) == FREE


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return tiny.tiny_single_file(tmp_path_factory.mktemp("sd") / "tiny.safetensors")


def gradients(path, *, checkpointing: bool, dtype: torch.dtype, attention: str) -> torch.Tensor:
    placement = Placement(CPU, dtype, torch.float32, attention, checkpointing)
    family = StableDiffusion.load(StableDiffusion.recognise(path), placement)
    targets = {"unet": StableDiffusion.target_presets["kohya"]["unet"]}
    inject({"unet": family.unet}, targets=targets, rank=2, alpha=2, dropout=0.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    trained = [p for p in family.unet.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    states = torch.randn(1, 77, tiny.TEXT_WIDTH, generator=generator)
    batch = Batch(1.0, torch.ones(1), {"states": states}, [], ["x"])
    noisy = torch.randn(1, 4, 16, 16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        family.predict(noisy, torch.tensor([5]), batch).float().square().mean().backward()
    assert len(trained) == 96
    return torch.cat([p.grad.flatten() for p in trained])


@pytest.mark.parametrize("attention", ["auto", "math", "flash"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_finds_the_same_kernel_again(single, dtype, attention):
    """Chosen around the network only, the kernel differed in the recomputed pass, and torch gave up."""
    plain = gradients(single, checkpointing=False, dtype=dtype, attention=attention)
    again = gradients(single, checkpointing=True, dtype=dtype, attention=attention)
    assert torch.equal(plain, again)
    assert plain.abs().max() > 1e-4


@pytest.mark.parametrize(("side", "expected"), [(8, {True}), (16, {True, False})])
def test_every_attention_of_the_network_is_under_the_rule(single, monkeypatch, side, expected):
    """Each call is asked which kernels it may use: with 16 x 16 positions, the outer blocks are above the limit."""
    family = StableDiffusion.load(StableDiffusion.recognise(single), Placement(CPU, torch.bfloat16, torch.float32))
    seen: list[tuple[int, bool]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def recorded(query, *rest, **more):
        seen.append((query.shape[2], set(_cur_sdpa_kernel_backends()) == {SDPBackend.MATH}))
        return attend(query, *rest, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    batch = Batch(1.0, torch.ones(1), {"states": torch.zeros(1, 77, tiny.TEXT_WIDTH)}, [], ["x"])
    with torch.no_grad():
        family.predict(torch.zeros(1, 4, side, side), torch.tensor([5]), batch)
    assert len(seen) == 2 * 4
    assert {is_math for _, is_math in seen} == expected
    assert all(is_math == (positions <= _attention.FEW_POSITIONS) for positions, is_math in seen)


def test_kernels_agree_up_to_rounding(single):
    math = gradients(single, checkpointing=False, dtype=torch.float32, attention="math")
    flash = gradients(single, checkpointing=False, dtype=torch.float32, attention="flash")
    assert (math - flash).abs().max() <= 1e-5 * math.abs().max()


def test_the_benchmark_runs():
    from bench.attention import SHAPES, measure

    assert len(SHAPES) >= 10
    assert measure((16, 16, 2, 8, 1), torch.float32, SDPBackend.MATH, 0.0) > 0
