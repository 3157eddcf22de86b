"""Log-probabilities of target tokens without a full table of logits.

The output head maps D numbers to V, tens of thousands. Only target positions go through it, some at a time; each
chunk's gradient with respect to the hidden states is formed at once and kept (N x D instead of N x V), and a frozen
head needs no gradient of its own.

    d log p(y) / d h = W_y - softmax(W h) W          (times the slope of a cap on the logits, where there is one)

Shapes: N = target positions, D = width, V = vocabulary, C = chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Head:
    """The frozen output head.

    Attributes:
        weight: (V, D).
        bias: (V,) or None.
        scale: what the logits are multiplied by.
        cap: c in c * tanh(logits / c), or 0 for none (arXiv:2408.00118, section 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float = 0.0


def find(model: Any) -> Head:
    """Return the head of a transformers causal LM, with what its config says of the logits."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = 1.0
    if getattr(config, "logits_scaling", None):
        scale = 1.0 / config.logits_scaling
    elif getattr(config, "logit_scale", None):
        scale = config.logit_scale
    cap = getattr(config, "final_logit_softcapping", None) or 0.0
    return Head(layer.weight, getattr(layer, "bias", None), float(scale), float(cap))


def token_logprobs(hidden_ND: Tensor, labels_N: Tensor, head: Head) -> Tensor:
    """(N,) float32 (float64 for float64) log p(label) at each position, with graph to `hidden_ND`."""
    import torch

    if torch.is_grad_enabled() and hidden_ND.requires_grad:
        return _function().apply(hidden_ND, labels_N, head)
    return _forward(hidden_ND, labels_N, head, None)


def logits(hidden_ND: Tensor, head: Head) -> Tensor:
    """(N, V) logits in float32 at least, for a few positions."""
    import torch

    with torch.autocast(hidden_ND.device.type, enabled=False):
        raw = hidden_ND.to(head.weight.dtype) @ head.weight.T
        if head.bias is not None:
            raw = raw + head.bias
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32)) * head.scale
        return head.cap * torch.tanh(raw / head.cap) if head.cap else raw


def _forward(hidden: Tensor, labels: Tensor, head: Head, gradient: Tensor | None) -> Tensor:
    """Fill `gradient` (N, D) with d log p / d h where it is given."""
    import torch

    kept = torch.promote_types(head.weight.dtype, torch.float32)
    chunk = max(16, CHUNK_BYTES // (head.weight.shape[0] * kept.itemsize))
    found = torch.empty(len(labels), dtype=kept, device=hidden.device)
    for start in range(0, len(labels), chunk):
        part, wanted = hidden[start : start + chunk], labels[start : start + chunk]
        table_CV = logits(part, head)
        rows = torch.arange(len(part), device=hidden.device)
        normaliser = table_CV.logsumexp(1)
        chosen = table_CV[rows, wanted]
        found[start : start + chunk] = chosen - normaliser
        if gradient is not None:
            slope = (1 - (table_CV / head.cap).square()) if head.cap else None
            wrong = table_CV.sub_(normaliser[:, None]).exp_().neg_()
            wrong[rows, wanted] += 1
            if slope is not None:
                wrong *= slope
            product = wrong.to(head.weight.dtype) @ head.weight
            gradient[start : start + chunk] = product.to(gradient.dtype) * head.scale
    return found


@cache
def _function() -> Any:
    """The autograd function; made here, since torch is not imported at the top."""
    import torch

    class TokenLogprobs(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
            kept = torch.promote_types(hidden.dtype, torch.float32)
            gradient = torch.empty(hidden.shape, dtype=kept, device=hidden.device)
            found = _forward(hidden.detach(), labels, head, gradient)
            ctx.save_for_backward(gradient)
            ctx.dtype = hidden.dtype
            return found

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
            (gradient,) = ctx.saved_tensors
            return (gradient * upstream[:, None].to(gradient.dtype)).to(ctx.dtype), None, None

    return TokenLogprobs
