"""A family of a linear layer and a convolution on vectors: enough for the loop, which must not know better."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_scripts import registry
from lora_scripts.contracts import Batch, Draw, Loss, Request
from lora_scripts.data.cache import Cache
from lora_scripts.train.averaging import Average
from lora_scripts.train.hub import Hub
from lora_scripts.train.loader import Loader
from lora_scripts.train.loop import Course, Trainer

WIDTH = 6


@dataclass(frozen=True)
class Vector:
    id: str
    group: int = 0
    repeats: int = 1
    weight: float = 1.0
    fingerprint: str = ""
    length: int = 1

    @property
    def mass(self) -> float:
        return self.weight


class ToyFamily:
    """y = W x + K x + b; examples are seeded by their id. W has two dimensions, the kernel K four, the bias b one."""

    def __init__(self, dtype=torch.float64, dropout: float = 0.0):
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.kernel = torch.nn.Conv2d(1, WIDTH, (2, WIDTH // 2), bias=False, dtype=dtype)
        self.dropout = torch.nn.Dropout(dropout)
        self.encoded: list[str] = []

    def trainable(self):
        return {"layer": self.layer, "kernel": self.kernel}

    def forward(self, x):
        return self.layer(x) + self.kernel(x.reshape(-1, 1, 2, WIDTH // 2)).flatten(1)

    def encoder_key(self, part: str) -> str:
        return f"toy {part}"

    def draw(self, example: Vector, random) -> Draw:
        return Draw(caption=example.id, flip=random.random() < 0.5)

    def requests(self, example: Vector, draw: Draw) -> Sequence[Request]:
        content = hashlib.sha256(f"{example.id}{draw.flip}".encode()).hexdigest()
        return [Request("vectors", content, (example.id, draw.flip))]

    def encode(self, requests: Sequence[Request]):
        self.encoded += [request.content for request in requests]
        return [{"x": self._vector(*request.payload)} for request in requests]

    def _vector(self, name: str, flip: bool) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        x = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
        return x.flip(0) if flip else x

    def collate(self, examples, entries):
        return {"x": torch.stack([entry["x"] for entry in entries])}


class ToyObjective:
    """Predict the reversed vector from a noisy one, weighted by row."""

    def __init__(self, broken_at: int = -1):
        self.calls, self.broken_at = 0, broken_at

    def loss(self, family: ToyFamily, batch: Batch, *, quantile: float | None = None) -> Loss:
        x = batch.tensors["x"].to(family.layer.weight.dtype)
        noise = torch.stack([torch.randn(WIDTH, generator=generator) for generator in batch.generators]).to(x)
        made = family.dropout(family.forward(x + 0.1 * noise))
        rows = (made - x.flip(1)).square().mean(dim=1)
        self.calls += 1
        if self.calls == self.broken_at:
            rows = rows * float("nan")
        return Loss((rows * batch.weights.to(rows)).sum())


def accelerator(scaler=None):
    """What the loop needs of Accelerate, from the real thing."""
    from accelerate import Accelerator

    made = Accelerator(cpu=True)
    # It makes one of its own on a GPU only.
    made.scaler = scaler
    return made


def build(
    folder,
    *,
    batch_size=4,
    groups=1,
    total=10,
    dropout=0.0,
    average=None,
    objective=None,
    dtype=torch.float64,
    optimizer="adamw",
    options=None,
    rate=1e-2,
    buffers=None,
    scaler=None,
    max_norm=1.0,
):
    """A trainer over the toy, with the optimizer of that name as `assembly` builds it; its events; its hub."""
    family = ToyFamily(dtype, dropout)
    loader = Loader(family, vectors(10, groups), Cache(folder / "cache"), seed=3, step_size=4, batch_size=batch_size)
    parameters = {name: dict(module.named_parameters()) for name, module in family.trainable().items()}
    tensors = [tensor for group in parameters.values() for tensor in group.values()]
    module = registry.load("optimizers", optimizer)
    parts = [{"params": list(group.values()), "lr": rate, "component": name} for name, group in parameters.items()]
    machine = accelerator(scaler)
    events = []
    hub = Hub([events.append])
    trainer = Trainer(
        family,
        objective or ToyObjective(),
        parameters,
        optimizer=machine.prepare(module.build(parts, module.Config(**(options or {})))),
        rates=dict.fromkeys(parameters, rate),
        factor=lambda step: 1 / (1 + step / 10),
        batches=loader,
        accelerator=machine,
        course=Course(total, loader.steps_per_epoch, max_norm, 3),
        emit=hub.emit,
        average=Average(tensors, average) if average else None,
        buffers=buffers or {},
    )
    return trainer, events, hub


def weights(trainer) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in trainer.tensors])


def vectors(count: int, groups: int = 1) -> list[Vector]:
    return [Vector(f"v{i}", i % groups, weight=1.0 + i % 3) for i in range(count)]
