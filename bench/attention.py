"""Time forward and backward of one attention on this machine's CPU: plain matrix products against the flash kernel.

    python -m bench.attention [--threads 1] [--seconds 0.5]

The rule of `lora_scripts/families/_attention.py` comes from this table. Shapes are those of Stable Diffusion 1.5 (8
heads), 2.x (heads of 64) and the embedded model; a row's time is the least of its repetitions, since a busy machine
can only make one longer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KERNELS = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}
# Query positions, key positions (77: text), heads, channels of a head, rows of a batch.
SHAPES = (
    (16, 16, 7, 32, 16),
    (64, 64, 4, 32, 16),
    (64, 24, 4, 32, 16),
    (64, 64, 8, 160, 4),
    (256, 256, 8, 160, 2),
    (256, 256, 8, 32, 4),
    (256, 77, 8, 160, 2),
    (64, 77, 8, 160, 4),
    (256, 256, 8, 80, 1),
    (576, 576, 8, 80, 1),
    (1024, 1024, 8, 80, 1),
    (1024, 1024, 10, 64, 1),
    (1024, 77, 8, 80, 1),
    (2304, 2304, 8, 40, 1),
    (4096, 4096, 8, 40, 1),
    (4096, 77, 8, 40, 1),
    (77, 77, 12, 64, 2),
)


def measure(shape: tuple[int, int, int, int, int], dtype: torch.dtype, kernel: SDPBackend, seconds: float) -> float:
    """Return the least time in milliseconds of one forward and backward pass."""
    queries, keys, heads, width, rows = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (queries, keys, keys)
    leaves = [torch.randn(rows, size, heads, width, generator=generator).to(dtype).requires_grad_() for size in sizes]
    # As in the network: heads are split off the channels, so their tensors are views.
    query, key, value = (leaf.transpose(1, 2) for leaf in leaves)
    best, spent, rounds = float("inf"), 0.0, 0
    while spent < seconds or rounds < 3:
        started = time.perf_counter()
        with sdpa_kernel(kernel):
            made = scaled_dot_product_attention(query, key, value)
        made.sum().backward()
        passed = time.perf_counter() - started
        best, spent, rounds = min(best, passed), spent + passed, rounds + 1
    return best * 1000


def table(seconds: float) -> Iterator[str]:
    """Yield the lines of the table."""
    head = f"{'positions':>13} {'heads':>5} {'width':>5} {'rows':>4}"
    yield f"{head}   {'float32: math flash':>20}   {'bf16: math flash':>20}"
    for shape in SHAPES:
        queries, keys, heads, width, rows = shape
        times = [measure(shape, d, k, seconds) for d in (torch.float32, torch.bfloat16) for k in KERNELS.values()]
        numbers = "   ".join(f"{a:10.2f} {b:9.2f}" for a, b in (times[:2], times[2:]))
        yield f"{f'{queries} x {keys}':>13} {heads:>5} {width:>5} {rows:>4}   {numbers}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="least time spent on each cell")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for line in table(arguments.seconds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
