"""Tiny real networks, and adapters with values that matter, for the tests of adapters and exporters."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.inject import Injected, inject

META = AdapterMeta(
    family="sd",
    name="tiny style",
    base_name="tiny-base",
    base_hash="ab" * 32,
    variant="sd1",
    resolution=(64, 96),
    steps=70,
    epochs=3,
    trigger="in tiny style",
    training={"num_train_images": "12", "noise_offset": "None", "tag_frequency": '{"10_cat": {"cat": 3}}'},
)

TRANSFORMER = r".*attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.0\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\..*))"
CONVOLUTIONS = r".*(resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)|samplers\.0\.conv)"
TEXT = r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
EVERYWHERE = {"unet": (TRANSFORMER, CONVOLUTIONS), "text_encoder": (TEXT,)}
ATTENTION = {"unet": (TRANSFORMER,), "text_encoder": (TEXT,)}


@cache
def _originals(linear: bool) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=32,
            use_linear_projection=linear,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=16,
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
            )
        )
    return {"unet": unet.eval(), "text_encoder": text.eval()}


def networks(linear: bool = False) -> dict[str, Any]:
    """Return fresh copies of one tiny UNet (32, 64) and one CLIP text encoder of width 32, with seeded weights."""
    return copy.deepcopy(_originals(linear))


def put(
    modules: dict[str, Any], targets=None, *, rank: int = 4, alpha: float = 4.0, seed: int = 1, **more: Any
) -> Injected:
    """Inject; `more` are `kind`, `options`, `rules`, `dtype`."""
    return inject(modules, targets=targets or EVERYWHERE, rank=rank, alpha=alpha, dropout=0.0, seed=seed, **more)


@torch.no_grad()
def shake(injected: Injected, size: float = 0.3) -> None:
    """Move the tensors that hold an update at nothing, so that it changes the output; by values float32 can hold."""
    generator = torch.Generator().manual_seed(9)
    for component in injected.summary():
        for name, tensor in injected.parameters(component).items():
            role = name.rpartition(".")[2]
            if role == "magnitude":
                tensor.mul_(1 + size * torch.rand(tensor.shape, generator=generator)).copy_(tensor.float())
            elif role in ("up", "w2", "w2_b"):
                moved = size * torch.randn(tensor.shape, generator=generator)
                tensor.copy_((tensor + moved).float() if tensor.any() else moved)


def adapter(targets=None, *, rank: int = 4, alpha: float = 4.0, linear: bool = False, **more: Any) -> Adapter:
    """Return an adapter of the tiny networks that moves their outputs."""
    injected = put(networks(linear), targets, rank=rank, alpha=alpha, **more)
    shake(injected)
    return injected.adapter(META)


def single(component: str = "unet", path: str = "mid_block.attentions.0.proj_in", **values: Any) -> Adapter:
    """Return an adapter of one random pair (8 <- 6, rank 2); `values` replace down, up, alpha."""
    generator = torch.Generator().manual_seed(3)
    pair = {"down": torch.randn(2, 6, generator=generator), "up": torch.randn(8, 2, generator=generator), "alpha": 2.0}
    return Adapter({component: {path: LoraPair(**{**pair, **values})}}, META)


@torch.no_grad()
def outputs(modules: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run both networks on fixed inputs, the text encoder's output feeding the UNet."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 64, (2, 16), generator=generator)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = modules["text_encoder"](ids).last_hidden_state
    text = text.to(next(modules["unet"].parameters()).dtype)
    latents = latents.to(text.dtype)
    unet = modules["unet"](latents, torch.tensor([10, 700]), encoder_hidden_states=text).sample
    return {"unet": unet, "text_encoder": text}


def flat(made: Adapter) -> dict[str, LoraPair]:
    return {f"{c}.{path}": pair for c, pairs in made.pairs.items() for path, pair in pairs.items()}


def same(first: Adapter, second: Adapter, tolerance: float = 0.0) -> None:
    """Assert that two adapters hold the same updates, module by module."""
    ours, theirs = flat(first), flat(second)
    assert ours.keys() == theirs.keys() and ours
    for module, pair in ours.items():
        difference = (pair.delta() - theirs[module].delta()).abs().max()
        assert difference <= tolerance, (module, float(difference))
