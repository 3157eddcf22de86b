"""Command line of the stages; see the package's docstring for their order."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_scripts.embedded import resolve

STAGES = ("data", "vae", "latents", "unet", "export", "evaluate")
LABELLER_STAGES = ("labeller-data", "labeller", "labeller-export", "labeller-evaluate")
EXAMPLE = Path("examples/style_high_contrast")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_scripts.embedded.training")
    parser.add_argument("stage", choices=[*STAGES, *LABELLER_STAGES])
    parser.add_argument("--work", type=Path, required=True, help="folder for state and data, outside the checkout")
    parser.add_argument("--tarballs", type=Path, help="folder of the npm tarballs (data, labeller-data)")
    parser.add_argument("--steps", type=int, help="total steps (vae, unet, labeller)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="folder that export writes and evaluate reads")
    parser.add_argument("--start-from", type=Path, help="pipeline folder whose weights a new unet stage starts from")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.stage in LABELLER_STAGES:
        _labeller(arguments)
    elif arguments.stage == "data":
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


def _labeller(arguments: argparse.Namespace) -> None:
    """The labeller's stages; its words are cut by the picture model's tokenizer."""
    from . import labeller

    pictures = resolve("embedded/pictures")
    assert pictures is not None
    vocabulary = pictures / "tokenizer"
    if arguments.stage == "labeller-data":
        labeller.prepare(arguments.tarballs, arguments.work, EXAMPLE)
    elif arguments.stage == "labeller":
        labeller.train(arguments.work, arguments.steps or 4500, vocabulary)
    elif arguments.stage == "labeller-export":
        labeller.export(arguments.work, arguments.folder, vocabulary)
    else:
        labeller.evaluate(arguments.work, vocabulary)


if __name__ == "__main__":
    main()
