"""Module paths and what other tools call them: one table, read in both directions.

Canonical paths are those of the diffusers or transformers class ("down_blocks.0.attentions.0.proj_in"); a CLIP text
encoder's begin with "text_model." whichever way the installed transformers nests it; a language model's are left as
they are. Kohya's tools write
"lora_unet_down_blocks_0_attentions_0_proj_in": dots have become underscores, so reading needs the model's own list of
modules, or, where there is none, the words that hold an underscore themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lora_scripts.errors import BaseModelError

LANGUAGE_MODEL = "language_model"
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
MAX_NAMED = 10

# Top-level parts of a CLIP text model; newer versions of transformers leave "text_model." out in front of them.
_CLIP_PARTS = ("encoder", "embeddings", "final_layer_norm")

# Names with an underscore inside, in Stable Diffusion's UNet and in CLIP's text model; longest first.
_COMPOUND_WORDS = tuple(
    sorted(
        """
        down_blocks mid_block up_blocks transformer_blocks to_q to_k to_v to_out proj_in proj_out conv_in conv_out
        conv_shortcut conv_norm_out time_emb_proj time_embedding class_embedding linear_1 linear_2
        text_model self_attn q_proj k_proj v_proj out_proj text_projection
        """.split(),
        key=len,
        reverse=True,
    )
)


def canonical(component: str, path: str) -> str:
    """Return the canonical form of a live module's path; a canonical path stays as it is."""
    if component.startswith("text_encoder") and path.split(".")[0] in _CLIP_PARTS:
        return f"text_model.{path}"
    return path


def kohya_name(component: str, path: str) -> str:
    """Return what kohya's tools, and all that read their files, call a module."""
    return KOHYA_PREFIXES[component] + path.replace(".", "_")


def kohya_paths(component: str, known: Iterable[str]) -> dict[str, str]:
    """Return the canonical path of every known module by its kohya name without prefix.

    Args:
        known: module paths of a live model, canonical or not.

    Raises:
        BaseModelError: two modules have the same kohya name.
    """
    paths: dict[str, str] = {}
    for path in known:
        full = canonical(component, path)
        other = paths.setdefault(full.replace(".", "_"), full)
        if other != full:
            raise BaseModelError("adapter.ambiguous_name", name=full.replace(".", "_"), first=other, second=full)
    return paths


def split_words(flat: str) -> str:
    """Turn "down_blocks_0_attentions_0_proj_in" into a path by the known compound words."""
    words = []
    while flat:
        compound = next((word for word in _COMPOUND_WORDS if flat == word or flat.startswith(f"{word}_")), None)
        word = compound or flat.split("_", 1)[0]
        words.append(word)
        flat = flat[len(word) + 1 :]
    return ".".join(words)


def component_of(path: str) -> str | None:
    """Tell whose module a bare path is, from its first word: "unet", "text_encoder" or None."""
    first = path.split(".")[0]
    if first in ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding"):
        return "unet"
    return "text_encoder" if first in ("text_model", "text_projection", *_CLIP_PARTS) else None


def some(names: Iterable[str]) -> str:
    """Join at most ten names for a sentence, sorted; "..." stands for the rest."""
    ordered = sorted(names)
    return ", ".join(ordered[:MAX_NAMED]) + (", ..." if len(ordered) > MAX_NAMED else "")


def canonical_modules(component: str, modules: Mapping[str, object]) -> dict[str, str]:
    """Return the live path of each module by its canonical path."""
    return {canonical(component, path): path for path in modules}
