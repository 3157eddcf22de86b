"""Sums, truncations and likenesses of updates, computed on their factors in float64.

A pair's update is a product of two thin matrices; everything here works on these, so that no matrix of a module's size
is formed unless the update is of a kind that has no thin factors.

Shapes: o = out, n = in times kernel positions, r = rank, k = min(o, n, r).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_scripts.adapters.adapter import LoraPair, Update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """delta W = left @ right, the scale inside `left`.

    Attributes:
        left: (o, r) float64.
        right: (r, n) float64.
        shape: of the weight: (o, i) or (o, i, k, k).
    """

    left: Tensor
    right: Tensor
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """r."""
        return self.right.shape[0]


@dataclass(frozen=True)
class Spectrum:
    """delta W = left @ diag(values) @ right, with orthonormal columns and rows.

    Attributes:
        left: (o, k) float64.
        values: (k,) singular values, descending, zeros included.
        right: (k, n) float64.
        shape: of the weight.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    shape: tuple[int, ...]


def factors(update: Update, shape: tuple[int, ...] | None = None) -> Factors:
    """Return an update's factors; an update that is no pair gets as many as its matrix has rows or columns.

    Args:
        shape: of the module's weight, where the update does not tell the kernel.
    """
    if isinstance(update, LoraPair):
        own = (update.up.shape[0], *update.down.shape[1:])
        left = update.up.detach().double().flatten(1) * update.scale
        return Factors(left, update.down.detach().double().flatten(1), own)
    delta = update.delta()
    found = split(delta.flatten(1))
    return Factors(found.left * found.values, found.right, shape or tuple(delta.shape))


def added(parts: Sequence[tuple[Factors, float]]) -> Factors:
    """Return the weighted sum by putting the factors side by side: exact, and the ranks add up."""
    import torch

    left = torch.cat([part.left * weight for part, weight in parts], dim=1)
    return Factors(left, torch.cat([part.right for part, _ in parts]), parts[0][0].shape)


def spectrum(part: Factors) -> Spectrum:
    """Return the singular values of a product of thin matrices: QR of both, then an (r, r) matrix is left."""
    import torch

    left, upper = torch.linalg.qr(part.left)
    right, lower = torch.linalg.qr(part.right.T)
    inner, values, outer = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return Spectrum(left @ inner, values, outer @ right.T, part.shape)


def split(matrix: Tensor, shape: tuple[int, ...] = ()) -> Spectrum:
    """Return the singular values of a whole matrix, from the eigenvectors of its smaller Gram matrix.

    Several times quicker than the singular value decomposition. Below 1e-8 of the largest, values and the second
    side's vectors are noise; the product of any first ones is a projection of the matrix all the same.

    Args:
        matrix: (o, n).
        shape: of the weight; the matrix's own where left out.
    """
    import torch

    wide = matrix.double()
    turned = wide.shape[0] > wide.shape[1]
    wide = wide.T if turned else wide
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    rows = vectors.T @ wide
    # In noise, the order of the eigenvalues is not that of the norms.
    values, order = rows.norm(dim=1).sort(descending=True)
    rows, vectors = rows[order], vectors[:, order]
    rows = rows / torch.where(values > 0, values, 1)[:, None]
    left, right = (rows.T, vectors.T) if turned else (vectors, rows)
    return Spectrum(left, values, right, shape or tuple(matrix.shape))


def rank_for_energy(values: Tensor, share: float) -> int:
    """Return the fewest values whose squares make up this share of the sum of squares; at least 1."""
    energy = values.double().square().cumsum(0)
    if not float(energy[-1]):
        return 1
    # A share of 1 asks for all that rounding lets one tell from nothing.
    wanted = share * float(energy[-1]) * (1 - 1e-12)
    return min(int((energy < wanted).sum()) + 1, len(values))


def rank_for_ratio(values: Tensor, ratio: float) -> int:
    """Return how many values are at least the largest divided by `ratio`; at least 1."""
    return max(1, int((values >= values[0] / ratio).sum())) if float(values[0]) else 1


def energy(values: Tensor) -> float:
    """Return the sum of squares: the squared norm of the update."""
    return float(values.double().square().sum())


def pair(found: Spectrum, rank: int, alpha: float) -> LoraPair:
    """Return the best pair of this rank (Eckart and Young, 1936); both halves get the root of each singular value.

    Args:
        alpha: of the pair; what differs from its rank is folded into `up`.
    """
    root = found.values[:rank].sqrt()
    down = found.right[:rank] * root[:, None]
    up = found.left[:, :rank] * root * (rank / alpha)
    return _pair(Factors(up, down, found.shape), alpha)


def as_pair(part: Factors, alpha: float) -> LoraPair:
    """Return the factors as a pair in float32: one rounding a value."""
    return _pair(replace(part, left=part.left * (part.rank / alpha)), alpha)


def _pair(part: Factors, alpha: float) -> LoraPair:
    rank, inner = part.rank, part.shape[1:]
    up = part.left.float().reshape(part.shape[0], rank, *(1 for _ in inner[1:])).contiguous()
    return LoraPair(part.right.float().reshape(rank, *inner).contiguous(), up, alpha)


def product(a: Factors, b: Factors) -> float:
    """Return the sum over all entries of delta A times delta B."""
    return float(((a.left.T @ b.left) * (a.right @ b.right.T)).sum())


def inside(a: Factors, b: Factors) -> float:
    """Return the squared norm of the part of delta A that reads what B reads and writes where B writes."""
    space = spectrum(b)
    real = space.values > space.values[0] * 1e-10
    left, right = space.left[:, real], space.right[real]
    return float(((left.T @ a.left) @ (a.right @ right.T)).square().sum())
