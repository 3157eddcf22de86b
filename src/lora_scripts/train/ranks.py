"""When one of several processes is gone or silent: one sentence that names it, instead of a trace from the network.

Each process leaves in the launcher's store how far it is. A collective that fails, because a connection is closed or
nothing comes for `process_timeout` seconds, then tells which of them is behind, and where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lora_scripts.errors import ConfigError, MachineError, Problem
from lora_scripts.events import Command, EpochEnded, Event, Saved, Started, Stepped

KEY = "lora-scripts/beat"
# What the libraries underneath say when a peer does not answer; they have no class for it.
_SAYINGS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "socket",
    "gloo/transport",
    "nccl",
)
_TOLD = (Started, Stepped, Saved, EpochEnded)


class Beats:
    """Leaves the step and what was done last, after each event that takes time."""

    def __init__(self, accelerator: Any):
        self.rank = accelerator.process_index
        self.store = _store() if accelerator.num_processes > 1 else None

    def __call__(self, event: Event) -> Command | None:
        """Leave a beat."""
        if self.store is not None and isinstance(event, _TOLD):
            self.store.set(f"{KEY}/{self.rank}", f"{event.step} {type(event).__name__}")
        return None


@contextmanager
def in_words(accelerator: Any) -> Iterator[None]:
    """Turn what a lost process looks like from here into a sentence.

    Raises:
        MachineError: a process is gone or silent.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not is_lost(error):
            raise
        raise MachineError("train.process_lost", **_blamed(accelerator), reason=_first_line(error)) from error


def is_lost(error: BaseException) -> bool:
    """Say whether an error means that another process does not answer."""
    return any(saying in str(error).lower() for saying in _SAYINGS)


def agree(accelerator: Any, facts: Mapping[str, Any]) -> None:
    """Make sure that all processes were started with the same config.

    Args:
        facts: flat, values that JSON knows.

    Raises:
        ConfigError: on every process, with each key that differs.
    """
    if accelerator.num_processes == 1:
        return
    from torch import distributed

    every: list[Any] = [None] * accelerator.num_processes
    distributed.all_gather_object(every, dict(facts))
    first = every[0]
    differing = {
        key: (first.get(key), other.get(key), rank)
        for rank, other in enumerate(every)
        for key in first.keys() | other.keys()
        if first.get(key) != other.get(key)
    }
    if differing:
        raise ConfigError(
            problems=[
                Problem("train.processes_differ", {"key": key, "first": one, "other": two, "rank": rank})
                for key, (one, two, rank) in sorted(differing.items())
            ]
        )


def part(accelerator: Any) -> None:
    """Let no process leave before the main one has written everything; a launcher ends all when one is gone early.

    The group is taken down in order: its threads would otherwise abort a process that ends while they run.
    """
    if accelerator.num_processes == 1:
        return
    from torch import distributed

    accelerator.wait_for_everyone()
    distributed.destroy_process_group()


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _blamed(accelerator: Any) -> dict[str, object]:
    """Return the ranks that are furthest behind, and where they were; all others where nothing tells."""
    beats: dict[int, tuple[int, str]] = {}
    try:
        store = _store()
        for rank in range(accelerator.num_processes):
            if store.check([f"{KEY}/{rank}"]):
                step, _, phase = store.get(f"{KEY}/{rank}").decode().partition(" ")
                beats[rank] = int(step), phase
    except (RuntimeError, ValueError):
        # The store may be gone with the process that held it.
        beats = {}
    others = {rank: beat for rank, beat in beats.items() if rank != accelerator.process_index}
    if not others:
        return {"ranks": "?", "step": "?", "phase": "?"}
    least = min(step for step, _ in others.values())
    behind = {rank: phase for rank, (step, phase) in others.items() if step == least}
    return {"ranks": ", ".join(map(str, behind)), "step": least, "phase": next(iter(behind.values()))}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160]
