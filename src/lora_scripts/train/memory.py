"""How much memory is in use, on whichever device trains, and how much would be: counted on tensors without values."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Its number in glibc's malloc.h.
M_MMAP_THRESHOLD = -3
BLOCK_BYTES = 64 << 10


def used_bytes(device: torch.device) -> int:
    """Return bytes allocated on a CUDA device, or this process's resident bytes."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a run on the device could still have."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def peak_bytes() -> int:
    """Return the largest resident size this process has had, or the present one where the system does not tell.

    On Linux the number that `resource` has begins with that of the process that started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:
        import psutil

        return psutil.Process().memory_info().rss


def trim() -> None:
    """Give pages that were freed back to the system, which glibc keeps otherwise."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_at_once() -> None:
    """Let every larger block go back to the system as soon as it is freed.

    glibc keeps blocks of up to 32 MiB for later, in pieces that later blocks do not fit into: a step then takes half as
    much again as it needs, with gradient checkpointing four times as much. New pages cost time instead: a fifth to a
    third of a step's on the machine of docs/benchmarks.md, which is why only runs that ask for little memory do this.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)


class Ledger:
    """Bytes of the tensors that are alive, by device, and the most that were.

    A tensor counts from when an operation returns it until nothing holds its storage: activations that are kept for the
    backward pass, what a step of it needs besides, gradients. What a kernel needs inside does not show.
    """

    def __init__(self, device: torch.device):
        self.device, self.live, self.peak = device, 0, 0
        self._sizes: dict[int, int] = {}

    def reset(self) -> int:
        """Begin anew at what is alive now, and return it."""
        self.peak = self.live
        return self.live

    def see(self, made: Any) -> None:
        """Count the tensors among what an operation returned."""
        import weakref

        import torch
        from torch.utils._pytree import tree_leaves

        for tensor in (made,) if isinstance(made, torch.Tensor) else tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            # Asking a tensor without values for its device is an operation of its own.
            device = getattr(tensor, "fake_device", None)
            if (tensor.device if device is None else device).type != self.device.type:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


@contextmanager
def without_values(device: torch.device) -> Iterator[Ledger]:
    """Whatever torch computes inside has shapes and formats, no values and no memory; a ledger tells how much."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    ledger = Ledger(device)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                # Whatever is asked is so: numbers are finite, and no layer is dropped.
                return args[0].dtype is torch.bool or 1
            made = func(*args, **(kwargs or {}))
            ledger.see(made)
            return made

    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), Counting():
        yield ledger
