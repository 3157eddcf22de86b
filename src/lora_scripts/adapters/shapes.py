"""Whether a module's factors fit each other, and their rank, told from the shapes in a file's header.

Shapes: r = rank, o = out, i = in, k = kernel side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from lora_scripts.adapters.safetensors_file import Header
from lora_scripts.errors import BaseModelError


def rank(path: Path, header: Header, module: str, roles: Mapping[str, str]) -> int:
    """Return the rank of a module's factors; 0 where nothing is factored.

    Args:
        roles: the tensors' names by role.

    Raises:
        BaseModelError: they do not fit each other.
    """
    shapes = {role: header.tensors[name].shape for role, name in roles.items()}
    ranks = {_joined(path, module, shapes, *halves) for halves in _products(shapes)}
    if len(ranks) > 1:
        least, most = min(ranks), max(ranks)
        raise BaseModelError("adapter.bad_shapes", path=path, name=module, down=least, up=most)
    if "magnitude" in shapes and math.prod(shapes["magnitude"]) != shapes["up"][0]:
        raise BaseModelError("adapter.bad_magnitude", path=path, name=module, found=list(shapes["magnitude"]))
    return max(ranks, default=0)


def _products(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """Return the roles of the left and the right half of every product among the tensors."""
    pairs = [("up", "down")] if "down" in shapes else []
    return pairs + [(role, f"{role[:-1]}b") for role in sorted(shapes) if role.endswith("_a")]


def _joined(path: Path, module: str, shapes: Mapping[str, tuple[int, ...]], left_role: str, right_role: str) -> int:
    """Return the side that both halves share: (o, r) and (r, i)."""
    left, right = shapes[left_role], shapes[right_role]
    is_linear = len(left) == 2 and len(right) == 2
    is_convolution = len(left) == 4 and len(right) == 4 and left[2:] == (1, 1)
    if not (is_linear or is_convolution) or left[1] != right[0] or not right[0]:
        raise BaseModelError("adapter.bad_shapes", path=path, name=module, down=list(right), up=list(left))
    return right[0]
