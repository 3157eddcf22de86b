"""What LoRA files call the modules of Stable Diffusion's UNets and text encoders."""

from __future__ import annotations

from collections.abc import Sequence

from lora_scripts.adapters.keys import KeyMap, PartKeys

# diffusers' end of a path below a block -> the original repository's.
ORIGINAL_INSIDE = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_STARTS = ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding")
_UNET_WORDS = (
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "to_q", "to_k", "to_v", "to_out"),
    *("proj_in", "proj_out", "conv_in", "conv_out", "conv_shortcut", "conv_norm_out"),
    *("time_emb_proj", "time_embedding", "class_embedding", "add_embedding", "linear_1", "linear_2"),
)
# Top-level parts of a CLIP text model, with and without "text_model." in front.
_TEXT_STARTS = ("text_model", "text_projection", "encoder", "embeddings", "final_layer_norm")
_TEXT_WORDS = ("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection")


def original_blocks(attended: Sequence[bool], layers: int = 2) -> dict[str, str]:
    """Return what the original repository calls the blocks of a diffusers UNet, by the starts of their paths.

    It counts all layers of the way down, and all of the way up, in one list each: input_blocks.0 is the first
    convolution, every layer is one entry, a step down is one more; a step up belongs to the entry before it.

    Args:
        attended: for each level of the way down, whether its layers have attention; the way up mirrors it.
        layers: of each level on the way down; one more on the way up.
    """
    blocks = {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}
    last = len(attended) - 1
    place = 1
    for level, has_attention in enumerate(attended):
        for layer in range(layers):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{place}.0"
            if has_attention:
                blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{place}.1"
            place += 1
        if level < last:
            blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    blocks["mid_block.resnets.0"] = "middle_block.0"
    blocks["mid_block.attentions.0"] = "middle_block.1"
    blocks["mid_block.resnets.1"] = "middle_block.2"
    place = 0
    for level, has_attention in enumerate(reversed(attended)):
        for layer in range(layers + 1):
            blocks[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{place}.0"
            if has_attention:
                blocks[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{place}.1"
            place += 1
        if level < last:
            step = 2 if has_attention else 1
            blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{step}.conv"
    return blocks


SD = KeyMap(
    parts={
        "unet": PartKeys("lora_unet_", starts=_UNET_STARTS, words=_UNET_WORDS),
        "text_encoder": PartKeys(
            "lora_te_", also=("lora_te1_",), starts=_TEXT_STARTS, words=_TEXT_WORDS, loses_prefix=True
        ),
    },
    widths=(768, 1024),
    said=("sd_",),
    architecture={
        "": "stable-diffusion-v1",
        "sd1": "stable-diffusion-v1",
        "sd2": "stable-diffusion-v2-512",
        "sd2-v": "stable-diffusion-v2-768-v",
    },
    version={"sd1": "sd_v1", "sd2": "sd_v2", "sd2-v": "sd_v2_v", "": "sd_v1"},
)

SDXL = KeyMap(
    parts={
        "unet": PartKeys(
            "lora_unet_",
            starts=_UNET_STARTS,
            words=_UNET_WORDS,
            blocks=original_blocks((False, True, True))
            | {
                "time_embedding.linear_1": "time_embed.0",
                "time_embedding.linear_2": "time_embed.2",
                "add_embedding.linear_1": "label_emb.0.0",
                "add_embedding.linear_2": "label_emb.0.2",
            },
            inside=ORIGINAL_INSIDE,
        ),
        "text_encoder": PartKeys("lora_te1_", starts=_TEXT_STARTS, words=_TEXT_WORDS, loses_prefix=True),
        "text_encoder_2": PartKeys("lora_te2_", words=_TEXT_WORDS),
    },
    marks=(
        *(r"^lora_te2_", r"^text_encoder_2\.", r"^lora_unet_(input_blocks|middle_block|output_blocks)_"),
        r"(^|[._])(add_embedding|label_emb)[._]",
    ),
    widths=(2048,),
    said=("sdxl_",),
    architecture={"": "stable-diffusion-xl-v1-base"},
    version={"": "sdxl_base_v1-0"},
    implementation="https://github.com/Stability-AI/generative-models",
)
