"""Which captioner speaks: its plug-in, its own options, its model and its device."""

from __future__ import annotations

from lora_scripts import registry
from lora_scripts.contracts import Captioner
from lora_scripts.errors import ConfigError, MachineError
from lora_scripts.files import at_home
from lora_scripts.labels.options import LabelOptions, captioner_config


def captioner(options: LabelOptions) -> Captioner:
    """Load the captioner that is asked for.

    Raises:
        ConfigError: an unknown one, options it does not have, or no model where it needs one.
        MachineError: a device that is not there, or what the captioner itself lacks.
    """
    module = registry.load("captioners", options.captioner)
    config = captioner_config(module.Config, options.settings)
    if module.NEEDS_MODEL and not options.model:
        raise ConfigError("label.needs_model", captioner=options.captioner)
    model = options.model
    if model is not None and model.startswith("~"):
        model = str(at_home(model))
    place = device(options.device)
    from transformers.utils import logging

    # Its bars would stand in the middle of our lines.
    logging.disable_progress_bar()
    return module.build(config, model, place)


def device(wanted: str) -> str:
    """Return the device to use: the one named, else the fastest that is there.

    Raises:
        MachineError: the one named is not there.
    """
    import torch

    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    there[:0] = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if wanted == "auto":
        return there[0].split(":")[0]
    if wanted not in there and wanted not in {name.split(":")[0] for name in there}:
        raise MachineError("label.no_device", device=wanted, known=", ".join(there))
    return wanted
