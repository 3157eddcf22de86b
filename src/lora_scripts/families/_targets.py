"""Which layers of a UNet and of CLIP text encoders get pairs: presets by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_TRANSFORMER = r".*\.attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
_RESNETS = (
    r".*\.resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)",
    r".*\.(downsamplers|upsamplers)\.0\.conv",
)
_TEXT_ATTENTION = r"(text_model\.)?encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
_TEXT_MLP = r"(text_model\.)?encoder\.layers\.\d+\.mlp\.(fc1|fc2)"
_UNET_ATTENTION = r".*\.transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_UNET_KOHYA = _TRANSFORMER + r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"


def presets(encoders: Sequence[str]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Return the target presets of a family with these text encoders."""
    attention, kohya = (_TEXT_ATTENTION,), (_TEXT_ATTENTION, _TEXT_MLP)
    return {
        "attention": {"unet": (_UNET_ATTENTION,), **dict.fromkeys(encoders, attention)},
        "kohya": {"unet": (_UNET_KOHYA,), **dict.fromkeys(encoders, kohya)},
        "kohya+conv": {"unet": (_UNET_KOHYA, *_RESNETS), **dict.fromkeys(encoders, kohya)},
    }
