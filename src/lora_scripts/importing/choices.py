"""Optimizers and schedules of kohya's sd-scripts as plug-ins of ours, with their arguments.

Whatever no plug-in does is said, and the nearest one takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from lora_scripts import registry
from lora_scripts.data.record import Note
from lora_scripts.importing.translation import CHANGED, UNDERSTOOD, UNSUPPORTED, Line, Translation, shown, to_flag

# The last part of a class path, without signs and in small letters -> our plug-in.
OPTIMIZERS = {
    "adamw": "adamw",
    "pagedadamw": "adamw",
    "pagedadamw32bit": "adamw",
    "adamw32bit": "adamw",
    "adamw8bit": "adamw8bit",
    "pagedadamw8bit": "adamw8bit",
    "lion": "lion",
    "lion8bit": "lion",
    "pagedlion8bit": "lion",
    "adafactor": "adafactor",
    "prodigy": "prodigy",
    "adamwschedulefree": "schedule_free",
    "came": "came",
    "muon": "muon",
}
# Kinds that find their own rate, as Prodigy does, so that a rate of 1 means the same.
_FINDS_RATE = ("dadapt", "prodigy")
_PLAIN = ("adamw", "pagedadamw", "lion", "adafactor", "prodigy", "adamwschedulefree", "came", "muon", "adamw8bit")
# What a library takes where nothing is said, and our plug-in would take something else.
LIBRARY = {
    "lion": {"weight_decay": 0.0},
    "prodigy": {"weight_decay": 0.0, "use_bias_correction": False, "safeguard_warmup": False},
    "schedule_free": {"weight_decay": 0.0},
    "came": {"weight_decay": 0.0},
}
# Arguments by the libraries' names -> our options, one for each number of the value.
ARGUMENTS: Mapping[str, Sequence[str]] = {
    "betas": ("beta1", "beta2", "beta3"),
    "eps": ("epsilon", "epsilon2"),
    "decay_rate": ("decay_rate",),
    "ns_steps": ("iterations",),
}
# Arguments that are always so here.
FIXED: Mapping[str, Mapping[str, Any]] = {
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
    "adamw": {"amsgrad": False, "fused": None, "foreach": None},
    "schedule_free": {"warmup_steps": 0},
    "prodigy": {"decouple": True},
}
SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_restarts",
    "cosine_with_min_lr": "cosine",
    "polynomial": "polynomial",
    "warmup_stable_decay": "wsd",
}
# Schedule classes by a part of their name.
SCHEDULE_CLASSES = {
    "rex": "rex",
    "cosineannealingwarmrestarts": "cosine_restarts",
    "cosineannealinglr": "cosine",
    "constantlr": "constant",
    "linearlr": "linear",
    "polynomiallr": "polynomial",
}


@dataclass
class Chosen:
    """A plug-in and its options.

    Attributes:
        stands_in: the kind asked for is not here, and this one takes its place.
        adapts: it finds its own rate.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    stands_in: bool = False
    adapts: bool = False

    @property
    def one_rate(self) -> bool:
        """Whether all tensors learn at one rate."""
        return bool(getattr(registry.load("optimizers", self.name), "ONE_RATE", False))


def optimizer(work: Translation) -> Chosen:
    """Choose the optimizer, judge its arguments, and set `optimizer`."""
    key = "optimizer_type"
    wanted = str(work.value(key, ""))
    for old, kind in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if work.flag(old) and not wanted:
            key, wanted = old, kind
        else:
            work.understood(old)
    wanted = wanted or "AdamW"
    plain = re.sub(r"[^a-z0-9]", "", wanted.rpartition(".")[2].lower())
    chosen = _optimizer_named(plain)
    arguments = pairs_of(work.value("optimizer_args"))
    for name, value in arguments.items():
        _argument(work, chosen, name, value)
    if not arguments:
        work.understood("optimizer_args")
    if chosen.name == "adafactor" and to_flag(arguments.get("relative_step", True)):
        work.changed(key, "import.why.relative_step", "optimizer: adafactor")
    options = {**LIBRARY.get(chosen.name, {}), **chosen.options} if not chosen.stands_in else {}
    said: Any = {"name": chosen.name, **options} if options else chosen.name
    work.put("optimizer", said, key)
    target = f"optimizer: {shown(said)}"
    if chosen.stands_in:
        work.changed(key, "import.why.no_optimizer", target, name=wanted, known=", ".join(registry.names("optimizers")))
    elif plain not in _PLAIN:
        work.changed(key, "import.why.near_optimizer", target, name=wanted)
    elif work.has(key):
        work.understood(key, target)
    else:
        work.tell(Line(key, wanted, UNDERSTOOD, target, given=False))
    return chosen


def _optimizer_named(plain: str) -> Chosen:
    known = registry.names("optimizers")
    name = OPTIMIZERS.get(plain, plain)
    adapts = plain.startswith(_FINDS_RATE)
    if name in known:
        return Chosen(name, adapts=adapts)
    near = "prodigy" if adapts and "prodigy" in known else "adamw"
    return Chosen(near, stands_in=True, adapts=near == "prodigy")


def _argument(work: Translation, chosen: Chosen, name: str, value: Any) -> None:
    """Judge one argument of the optimizer, and take it over where there is an option for it."""
    key = f"{work.written('optimizer_args')}.{name}"
    fixed = FIXED.get(chosen.name, {})
    if name in fixed and (fixed[name] is None or to_flag(value) == to_flag(fixed[name])):
        work.tell(Line(key, shown(value), UNDERSTOOD))
        return
    values = value if isinstance(value, list) else [value]
    config = registry.load("optimizers", chosen.name).Config
    names = ARGUMENTS.get(name, (name,))
    taken = {option: one for option, one in zip(names, values, strict=False) if option in config.model_fields}
    try:
        config.model_validate({**chosen.options, **taken})
    except ValidationError:
        taken = {}
    if not taken or chosen.stands_in:
        note = Note("import.why.no_argument", {"name": chosen.name})
        work.tell(Line(key, shown(value), UNSUPPORTED, note=note))
        return
    chosen.options |= taken
    target = ", ".join(f"optimizer.{option}: {shown(one)}" for option, one in taken.items())
    if len(taken) < len(values):
        note = Note("import.why.no_argument", {"name": chosen.name})
        work.tell(Line(key, shown(value), CHANGED, target, note))
    else:
        work.tell(Line(key, shown(value), UNDERSTOOD, target))


def schedule(work: Translation, steps: int, chosen: Chosen) -> None:
    """Choose the schedule and the warm-up, and set `schedule` and `warmup`."""
    warmup = warmup_steps(work, steps)
    work.put("warmup", warmup, "lr_warmup" if work.has("lr_warmup") else "lr_warmup_steps")
    key, kind, name = _schedule_named(work)
    options = _schedule_options(work, name, steps - warmup)
    value: Any = {"name": name, **options} if options else name
    fixed = getattr(registry.load("optimizers", chosen.name), "SCHEDULE", None)
    if fixed is not None:
        work.put("schedule", fixed, key)
        work.understood(key, f"schedule: {fixed}")
    elif kind in SCHEDULES:
        work.same(key, "schedule", value, default="constant")
    else:
        work.put("schedule", value, key)
        near = any(part in kind.lower() for part in SCHEDULE_CLASSES)
        code = "import.why.near_schedule" if near else "import.why.no_schedule"
        work.changed(key, code, f"schedule: {shown(value)}", name=kind, known=", ".join(registry.names("schedules")))
    for other in ("lr_scheduler", "lr_scheduler_type"):
        if not work.judged(other):
            work.understood(other)


def warmup_steps(work: Translation, steps: int) -> int:
    """Return the steps of the warm-up: a number, a share below 1, or the window's percentage."""
    if work.has("lr_warmup") and not work.has("lr_warmup_steps"):
        warmup = round(work.number("lr_warmup") * steps / 100)
        work.understood("lr_warmup", f"warmup: {warmup}")
        work.understood("lr_warmup_steps")
        return warmup
    work.understood("lr_warmup")
    value = work.number("lr_warmup_steps", 0)
    share = isinstance(work.value("lr_warmup_steps"), float) and 0 < value < 1
    warmup = int(value * steps) if share else int(value)
    work.same("lr_warmup_steps", "warmup", warmup, default=0)
    return warmup


def _schedule_named(work: Translation) -> tuple[str, str, str]:
    """Return (key, what it says, our plug-in)."""
    known = registry.names("schedules")
    if work.has("lr_scheduler_type"):
        kind = str(work.value("lr_scheduler_type"))
        last = kind.rpartition(".")[2].lower()
        near = next((name for part, name in SCHEDULE_CLASSES.items() if part in last), "constant")
        return "lr_scheduler_type", kind, near if near in known else "constant"
    kind = str(work.value("lr_scheduler", "constant"))
    name = SCHEDULES.get(kind, "constant")
    return "lr_scheduler", kind, name if name in known else "constant"


def _schedule_options(work: Translation, name: str, after_warmup: int) -> dict[str, Any]:
    """Return our options, and judge the settings that are only for some schedules."""
    fields = registry.load("schedules", name).Config.model_fields
    options: dict[str, Any] = {}
    wanted = {
        "lr_scheduler_num_cycles": ("cycles", work.whole("lr_scheduler_num_cycles", 1)),
        "lr_scheduler_power": ("power", work.number("lr_scheduler_power", 1)),
        "lr_scheduler_min_lr_ratio": ("floor", work.number("lr_scheduler_min_lr_ratio", 0)),
    }
    for key, (option, value) in wanted.items():
        if option in fields and (option != "floor" or value):
            options[option] = value
            work.understood(key, f"schedule.{option}: {shown(value)}" if work.has(key) else "")
        else:
            work.understood(key)
    if name == "wsd":
        decay = work.number("lr_decay_steps", 0) or 0
        decay = decay if isinstance(work.value("lr_decay_steps"), float) and decay < 1 else decay / max(1, after_warmup)
        options |= {"decay": max(decay, 1e-6), "shape": "cosine"}
        work.understood("lr_decay_steps", f"schedule.decay: {shown(options['decay'])}")
    else:
        work.understood("lr_decay_steps")
    for key in ("lr_scheduler_timescale", "lr_scheduler_args"):
        if work.has(key) and work.value(key) not in ([], 0):
            work.unsupported(key, "import.why.no_argument", name=name)
        else:
            work.understood(key)
    return options


def pairs_of(value: Any) -> dict[str, Any]:
    """Return arguments such as ["weight_decay=0.1", "betas=0.9,0.99"], or the same in one text, by name."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(one) for key, one in value.items()}
    if isinstance(value, str):
        value = re.findall(r"[^\s,;=]+\s*=\s*(?:\([^)]*\)|\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[^\s;]+)", value)
    found: dict[str, Any] = {}
    for word in value if isinstance(value, list) else []:
        name, equals, text = str(word).partition("=")
        found[name.strip()] = plain_value(text) if equals else True
    return found


def plain_value(value: Any) -> Any:
    """Read a value as Python would write it: True, None, 0.1, (0.9, 0.99); anything else stays a text."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    text = value.strip().strip("\"'")
    if "," in text or text[:1] in ("(", "["):
        return [plain_value(part) for part in text.strip("()[]").split(",") if part.strip()]
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
