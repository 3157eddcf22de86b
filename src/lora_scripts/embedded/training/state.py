"""The state of a training stage: one safetensors file, replaced atomically, enough to continue at any step."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class Stage:
    """Models, their averages and one AdamW, with a step count; draws are seeded by it, so no random state is kept.

    Args:
        path: where the state lies; an existing file is continued.
        modules: named modules that train.
        ema_decay: decay of the averaged weights, per step.
    """

    def __init__(self, path: Path, modules: dict[str, torch.nn.Module], *, rate: float, ema_decay: float, seed: int):
        self.path, self.modules, self.ema_decay, self.seed = path, modules, ema_decay, seed
        self.names = [f"{m}.{n}" for m, module in modules.items() for n, _ in module.named_parameters()]
        self.parameters = [p for module in modules.values() for p in module.parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
        self.rate, self.step, self.seconds = rate, 0, 0.0
        self.stop = False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))
        if path.exists():
            self._load()

    def generator(self) -> torch.Generator:
        """The only source of randomness of the current step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)

    def update(self, factor: float) -> None:
        """Clip to norm 1, one AdamW step at `rate * factor`, one step of the average."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def save(self) -> None:
        tensors = {}
        for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
            moments = self.optimizer.state.get(parameter, {})
            tensors[f"weight/{name}"], tensors[f"average/{name}"] = parameter.detach(), average
            tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq") if key in moments}
        staged = self.path.with_suffix(".tmp")
        save_file(tensors, staged, metadata={"step": str(self.step), "seconds": str(self.seconds)})
        os.replace(staged, self.path)

    def _load(self) -> None:
        with safe_open(self.path, "pt") as file:
            self.step, self.seconds = int(file.metadata()["step"]), float(file.metadata()["seconds"])
            for i, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
                parameter.data.copy_(file.get_tensor(f"weight/{name}"))
                self.average[i].copy_(file.get_tensor(f"average/{name}"))
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": file.get_tensor(f"exp_avg/{name}"),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}"),
                }

    def use_average(self) -> None:
        """Copy the averaged weights into the modules (for export and for latents)."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)

    def run(
        self, total: int, one_step: Callable[[], torch.Tensor], factor: Callable[[int], float], *, log: Path
    ) -> None:
        """Train until `total` steps, logging the mean loss of each 100 and saving every 250."""
        running: list[float] = []
        while self.step < total and not self.stop:
            started = time.perf_counter()
            loss = one_step()
            loss.backward()
            self.update(factor(self.step))
            running.append(loss.item())
            self.seconds += time.perf_counter() - started
            if self.step % 100 == 0 or self.step == total:
                row = {"stage": self.path.stem, "step": self.step, "loss": sum(running) / len(running)}
                row["seconds"] = round(self.seconds, 1)
                running.clear()
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if self.step % 250 == 0 or self.step == total:
                self.save()
        self.save()
