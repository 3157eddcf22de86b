"""`lora-scripts resume OUTPUT`: carry on the run in a folder, with the config it was started with."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lora_scripts import messages
from lora_scripts.cli import train
from lora_scripts.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=messages.text("cli.help.run_folder"))
    train.add_continue(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train on from the newest whole checkpoint; a run that is complete says so."""
    from lora_scripts import identity
    from lora_scripts.runs import RunFolder

    folder = arguments.output.absolute()
    record = RunFolder(folder).record()
    if record is None:
        raise ConfigError("train.no_run", path=arguments.output)
    # Its paths may be relative to where it was started; the folder itself may have been moved since.
    started_in = Path(record.get("started_in", "."))
    if started_in.is_dir():
        os.chdir(started_in)
    config = identity.recorded_config(record, folder)
    return train.start(config.model_copy(update={"output_dir": folder}), continued=arguments.continued)
