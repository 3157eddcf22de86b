"""Module paths in their canonical form, and what other tools make of them.

Canonical paths are those of the diffusers or transformers class ("down_blocks.0.attentions.0.proj_in"); a CLIP text
encoder's begin with "text_model." whichever way the installed transformers nests it; a language model's are left as
they are. What files call them instead is each family's own table: see `adapters.keys`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_scripts import messages

LANGUAGE_MODEL = "language_model"
TEXT_MODEL = "text_model."
MAX_NAMED = 10

# Top-level parts of a CLIP text model; newer versions of transformers leave "text_model." out in front of them.
_CLIP_PARTS = ("encoder", "embeddings", "final_layer_norm")


def canonical(component: str, path: str) -> str:
    """Return the canonical form of a live module's path; a canonical path stays as it is."""
    if component.startswith("text_encoder") and path.split(".")[0] in _CLIP_PARTS:
        return f"{TEXT_MODEL}{path}"
    return path


def split_words(flat: str, compounds: Sequence[str]) -> str:
    """Turn "down_blocks_0_attentions_0_proj_in" into a path.

    Args:
        compounds: words that hold an underscore themselves; the longest that fits counts.
    """
    ordered = sorted(compounds, key=len, reverse=True)
    words = []
    while flat:
        compound = next((word for word in ordered if flat == word or flat.startswith(f"{word}_")), None)
        word = compound or flat.split("_", 1)[0]
        words.append(word)
        flat = flat[len(word) + 1 :]
    return ".".join(words)


def some(names: Iterable[str]) -> str:
    """Join at most ten names for a sentence, sorted and made printable; "..." stands for the rest."""
    ordered = sorted(names)
    return ", ".join(map(messages.printable, ordered[:MAX_NAMED])) + (", ..." if len(ordered) > MAX_NAMED else "")
