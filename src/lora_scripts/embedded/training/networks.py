"""The networks of the embedded picture model, as ordinary diffusers and transformers classes.

The measurements behind the shapes: an f = 8 autoencoder with 16 latent channels keeps eyes and outlines at
64 px (28.6 dB) where f = 4 with 4 channels blurs them, and its 8 x 8 latents make the UNet four times cheaper.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

MAX_TOKENS = 24
VOCABULARY_MERGES = 3800


def build_vae():
    """AutoencoderKL, (3, 64, 64) -> (16, 8, 8), 2.15 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(24, 48, 96, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def build_text_encoder(tokenizer):
    """CLIPTextModel, width 128, 2 layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_image_tower():
    """ResNetForImageClassification, (3, 64, 64) -> 128 shared dimensions, 3 M parameters."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=48,
            hidden_sizes=[48, 96, 192, 320],
            depths=[1, 2, 2, 1],
            layer_type="basic",
            downsample_in_first_stage=False,
            num_labels=128,
        )
    )


def build_label_text_tower(tokenizer):
    """CLIPTextModelWithProjection, width 128, 2 layers, onto 128 shared dimensions."""
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(build_text_encoder(tokenizer).config)


def build_unet():
    """UNet2DConditionModel on (16, 8, 8) latents, 13.7 M parameters with the text encoder's 0.74 M beside."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(128, 224),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(4, 7),
        cross_attention_dim=128,
        norm_num_groups=32,
    )


def build_scheduler():
    """DDIM, v-prediction, zero terminal SNR, trailing steps (arXiv:2305.08891)."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def train_tokenizer(texts: list[str], folder: Path):
    """A real CLIPTokenizer: 512 byte symbols, byte-pair merges learned on `texts`, two specials."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    vocabulary = symbols + [s + "</w>" for s in symbols]
    encode = bytes_to_unicode()
    words: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        for word in text.lower().replace(",", " , ").replace("-", " - ").split():
            spelled = [encode[b] for b in word.encode()]
            words[(*spelled[:-1], spelled[-1] + "</w>")] += 1
    merges: list[tuple[str, str]] = []
    while len(merges) < VOCABULARY_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for letters, count in words.items():
            for pair in pairwise(letters):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        vocabulary.append("".join(best))
        merged_words: Counter[tuple[str, ...]] = Counter()
        for letters, count in words.items():
            merged: list[str] = []
            for symbol in letters:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            merged_words[tuple(merged)] += count
        words = merged_words
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def load_tokenizer(folder: Path):
    """Load what `train_tokenizer` wrote."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)
