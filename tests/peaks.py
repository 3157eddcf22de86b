"""Started as a process of its own: either estimates the peaks of several configs, or takes one of them in training.

python -m tests.peaks estimate CONFIG...      prints a JSON list of {phase: bytes}
python -m tests.peaks train CONFIG            prints the bytes the process had at most
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def estimate(configs: list[Path]) -> list[dict[str, int]]:
    from lora_scripts import counting
    from lora_scripts.config.load import load
    from lora_scripts.preparation import prepare

    where = counting.machine()
    return [dict(counting.count(prepare(load(config, [])), where).memory.phases) for config in configs]


def train(config: Path) -> int:
    from lora_scripts import assembly
    from lora_scripts.config.load import load
    from lora_scripts.data.cache import Cache
    from lora_scripts.preparation import cache_folder, prepare
    from lora_scripts.train.memory import peak_bytes

    prepared = prepare(load(config, []))
    machine = assembly.machine(prepared.config)
    run = assembly.build(prepared, machine, Cache(cache_folder(prepared.config)), "")
    assembly.fill(run, lambda code, **params: None)
    run.trainer.fit(run.loader.largest())
    return peak_bytes()


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[2:]]
    print(json.dumps(estimate(paths) if sys.argv[1] == "estimate" else train(paths[0])))
