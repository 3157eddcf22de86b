"""Several rows in one stream: linear layers see no padding, and attention never crosses a row's edge.

The stream has shape (1, T, D): rows one after the other, positions restarted at each. Attention is computed row by row
from the rows' lengths, which travel to it as a keyword argument through the model (`row_lengths`); so a row's
result is that of the row alone, whatever its neighbours are.

Shapes: H = query heads, K = key heads, n = H / K, T = stream, L = one row, d = width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NAME = "lora_scripts_rows"
# Up to this length the plain product is quicker on a CPU than PyTorch's flash attention with its slow backward pass
# (docs/benchmarks.md, "Attention on the CPU"); beyond it flash also keeps memory linear.
PLAIN_LENGTH = 256


def register() -> None:
    """Make the attention known to transformers under `NAME`; its mask is made here, so none is made there."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_lengths: Sequence[int] = (),
    row_masks: Sequence[Tensor | None] = (),
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend inside each row, causally, or as the row's own mask says.

    Args:
        query: (1, H, T, d); key and value: (1, K, T, d).
        row_lengths: of the rows, in order; they sum to T. Empty: the stream is one row.
        row_masks: None for a causal row, else (L, L) bool, True where a position may look.

    Returns:
        (1, T, H, d) and no weights.
    """
    import torch

    lengths = list(row_lengths) or [query.shape[2]]
    masks = list(row_masks) or [None] * len(lengths)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = [
        _row(q[0], k[0], v[0], mask, scale)
        for q, k, v, mask in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), masks, strict=True
        )
    ]
    return torch.cat(parts, 1).transpose(0, 1)[None], None


def _row(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(H, L, d): one row's attention."""
    import torch
    from torch.nn import functional

    heads, length, width = query.shape
    groups = key.shape[0]
    if length > PLAIN_LENGTH or query.device.type != "cpu":
        made = functional.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        return made[0]
    # Key heads serve n query heads each: those become further rows of one product, and nothing is repeated.
    stacked = query.reshape(groups, heads // groups * length, width)
    with torch.autocast(query.device.type, enabled=False):
        return _function().apply(stacked, key, value, mask, scale).view(heads, length, width)


@cache
def _function() -> Any:
    """Attention of short rows that keeps its inputs alone; made here, since torch is not imported at the top."""
    import torch

    def shares(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """(K, nL, L) float32: rounded to 16 bits, scores would move the softmax by several percent."""
        kept = torch.promote_types(query.dtype, torch.float32)
        length = key.shape[1]
        scores = (query.to(kept) * scale @ key.to(kept).transpose(1, 2)).view(-1, length, length)
        allowed = mask if mask is not None else torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
        return scores.masked_fill_(~allowed, float("-inf")).softmax(-1).view(len(key), -1, length)

    class RowAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
            ctx.save_for_backward(query, key, value, mask)
            ctx.scale = scale
            return shares(query, key, mask, scale).to(value.dtype) @ value

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple:
            query, key, value, mask = ctx.saved_tensors
            weights = shares(query, key, mask, ctx.scale)
            for_value = weights.to(upstream.dtype).transpose(1, 2) @ upstream
            grown = upstream.to(weights.dtype) @ value.to(weights.dtype).transpose(1, 2)
            for_scores = weights * (grown - (grown * weights).sum(-1, keepdim=True)) * ctx.scale
            for_query = (for_scores @ key.to(weights.dtype)).to(query.dtype)
            for_key = (for_scores.transpose(1, 2) @ query.to(weights.dtype)).to(key.dtype)
            return for_query, for_key, for_value, None, None

    return RowAttention


def choice_mask(prompt: int, choices: Sequence[int]) -> Tensor:
    """(L, L) bool for one prompt followed by several continuations that do not see each other.

    Args:
        prompt: tokens of the prompt.
        choices: tokens of each continuation.
    """
    import torch

    total = prompt + sum(choices)
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    start = prompt
    for length in choices:
        mask[start : start + length, prompt:start] = False
        start += length
    return mask


def can_pack(config: Any, longest: int) -> bool:
    """Say whether a model of this config may be given streams: all its layers attend, without caps, sinks or windows.

    Args:
        longest: tokens of the longest row; a window beyond it does nothing.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    windowed = window is not None and 0 < window < longest and kinds != {"full_attention"}
    plain = kinds <= {"full_attention", "sliding_attention"} and not windowed
    others = ("attn_logit_softcapping", "mamba_d_state", "ssm_state_size", "linear_num_key_heads", "alibi")
    return plain and not any(getattr(config, name, None) for name in others)
