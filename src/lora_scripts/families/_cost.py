"""A family's work on tensors that have shapes and no values: what an estimate of memory is counted on.

Everything is the family's own code: layers as they are held, pairs, attention, gradient checkpointing, the loss. So
what a change to any of them costs or saves is counted without telling anyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_scripts.contracts import Base, Placement
from lora_scripts.data.record import PictureExample
from lora_scripts.families import _offload

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class PictureRehearsal:
    """See `contracts.Rehearsal`; `kind` is a family that draws pictures."""

    def __init__(self, kind: Any, base: Base, placement: Placement, options: Any = None):
        import torch

        self._files = _Weightless(kind.stored(base))
        self._placement = replace(placement, offload_blocks=0)
        weightless: Any = type(kind.__name__, (kind,), {"stored": classmethod(lambda cls, base: self._files)})
        on_meta = replace(self._placement, device=torch.device("meta"))
        self.family: Any = weightless.load(base, on_meta, options)

    def embody(self) -> None:
        """Give every tensor a place on the device."""
        device = self._placement.device
        for module in (self.family.unet, *self.family._encoders.values()):
            embody(module, device)
        self._files.device = device
        self.family.placement = self._placement

    def entry(self, example: PictureExample) -> dict[str, Tensor]:
        """Return what the cache would hold for a visit of the example."""
        import torch

        channels = self.family.unet.config.in_channels
        columns, rows = self._latent_size(example)
        made = {name: torch.empty(channels, rows, columns) for name in ("mean", "deviation")}
        if example.mask is not None:
            made["mask"] = torch.empty(1, rows, columns)
        ids = self._ids()
        if self.family.text_trains:
            return made | ids
        return made | self._said(ids)

    def encode(self, example: PictureExample) -> None:
        """Encode the example's picture and caption."""
        import torch

        family = self.family
        width, height = example.bucket
        with torch.no_grad():
            pixels = torch.empty(1, 3, height, width).to(family.vae.device, family.vae.dtype)
            posterior = family.vae.encode(pixels).latent_dist
            kept = posterior.mean[0].float(), posterior.std[0].float()
        del kept
        if not family.text_trains:
            self._said(self._ids())

    def draw(self, example: PictureExample) -> None:
        """Read a prompt and decode a picture: predicting, without a backward pass, needs less than a step does."""
        import torch

        columns, rows = self._latent_size(example)
        self._said(self._ids())
        vae = self.family.vae
        with torch.no_grad():
            vae.decode(torch.empty(1, vae.config.latent_channels, rows, columns).to(self._placement.device, vae.dtype))

    def reading(self) -> int:
        """Return the most that main memory holds besides the UNet as it stays, while it is read.

        One tensor at a time is read. What is to be held in few bits is first there in the format it computes in.
        """
        if not self._placement.quantisation:
            return 0
        wanted = self.family.base.parameters["unet"] * self._placement.base_dtype.itemsize
        held = sum(tensor.nbytes for *_, tensor in _tensors(self.family.unet) if not tensor.requires_grad)
        return max(0, wanted - held)

    def waiting(self) -> list[int]:
        """Return the bytes of each block that could wait in main memory, the largest first."""
        return sorted(map(_offload.size, _offload.blocks(self.family.unet)), reverse=True)

    def _latent_size(self, example: PictureExample) -> tuple[int, int]:
        side = self.family._latent_side
        return example.bucket[0] // side, example.bucket[1] // side

    def _ids(self) -> dict[str, Tensor]:
        import torch

        length = self.family.base.max_tokens
        return {component: torch.zeros(length, dtype=torch.long) for component in self.family.architecture.encoders}

    def _said(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        with torch.no_grad():
            said = self.family.text({name: row[None].to(self._placement.device) for name, row in ids.items()})
        return {name: tensor[0].float().cpu() for name, tensor in said.items()}


class _Weightless:
    """A base's files without their weights; see `_architecture.Stored`.

    Attributes:
        device: where parts that are asked for from now on have their tensors; None is nowhere.
    """

    def __init__(self, stored: Any):
        self._stored = stored
        self.device: torch.device | None = None
        self._parts: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stored, name)

    def unet(self, dtype: torch.dtype) -> Any:
        """The UNet's shapes."""
        return self._part("unet", dtype)

    def text_encoder(self, component: str, dtype: torch.dtype) -> Any:
        """A text encoder's shapes."""
        return self._part(component, dtype)

    def vae(self, dtype: torch.dtype) -> Any:
        """The autoencoder's shapes."""
        import torch
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            return self._placed(AutoencoderKL.from_config(dict(self._stored.vae_config())), dtype)

    def _part(self, name: str, dtype: torch.dtype) -> Any:
        import torch

        if name not in self._parts:
            with torch.device("meta"):
                self._parts = dict(self._stored.skeleton())
        return self._placed(self._parts.pop(name), dtype)

    def _placed(self, module: Any, dtype: torch.dtype) -> Any:
        for _, kept, name, tensor in _tensors(module):
            kept[name] = _like(tensor, dtype if tensor.is_floating_point() else tensor.dtype, tensor.device)
        if self.device is not None:
            embody(module, self.device)
            # It is where it should be, and torch cannot move a module whose tensors have no values.
            module.to = lambda *_, **__: module
        return module.eval()


def embody(module: nn.Module, device: torch.device) -> None:
    """Replace a module's tensors by empty ones on the device; what was one tensor stays one."""
    made: dict[int, Any] = {}
    for _, kept, name, tensor in list(_tensors(module)):
        if id(tensor) not in made:
            made[id(tensor)] = _like(tensor, tensor.dtype, device)
        kept[name] = made[id(tensor)]


def _tensors(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any], str, Tensor]]:
    found = []
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            found += [(part, kept, name, tensor) for name, tensor in kept.items() if tensor is not None]
    return found


def _like(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Any:
    import torch
    from torch import nn

    made = torch.empty(tensor.shape, dtype=dtype, device=device)
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
