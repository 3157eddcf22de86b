"""Command line of the stages; see the package's docstring for their order."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_scripts.embedded.training")
    parser.add_argument("stage", choices=["data", "vae", "latents", "unet", "export", "evaluate"])
    parser.add_argument("--work", type=Path, required=True, help="folder for state and data, outside the checkout")
    parser.add_argument("--tarballs", type=Path, help="folder of the npm tarballs (data)")
    parser.add_argument("--steps", type=int, help="total steps (vae, unet)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="pipeline folder (export writes it, evaluate reads it)")
    parser.add_argument("--start-from", type=Path, help="pipeline folder whose weights a new unet stage starts from")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.stage == "data":
        from .data import prepare

        prepare(arguments.tarballs, arguments.work)
    elif arguments.stage == "vae":
        from .vae import train as train_vae

        train_vae(arguments.work, arguments.steps or 3600)
    elif arguments.stage == "latents":
        from .vae import cache_latents

        cache_latents(arguments.work)
    elif arguments.stage == "unet":
        from .unet import train

        train(arguments.work, arguments.steps or 16000, arguments.start_from)
    elif arguments.stage == "export":
        from .export import export

        export(arguments.work, arguments.folder)
    else:
        from .evaluate import evaluate

        evaluate(arguments.work, arguments.folder)


if __name__ == "__main__":
    main()
