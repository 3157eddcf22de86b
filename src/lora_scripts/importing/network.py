"""Kohya's network and its arguments: rank, alpha, kind of adapter, layers, blocks of their own rank or rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lora_scripts import registry
from lora_scripts.data.record import Note
from lora_scripts.errors import ConfigError
from lora_scripts.importing import blocks
from lora_scripts.importing.choices import pairs_of
from lora_scripts.importing.translation import (
    CHANGED,
    UNDERSTOOD,
    UNSUPPORTED,
    Line,
    Translation,
    shown,
    to_flag,
    to_number,
    to_whole,
)

RANK, ALPHA = 4, 1.0
"""What sd-scripts take where nothing is said."""
# LyCORIS' sets of layers -> our preset, whether the text encoder is among them, and whether it is exactly the same.
LAYER_SETS: Mapping[str, tuple[Any, bool, bool]] = {
    "full": ("kohya+conv", True, False),
    "full-lin": ("kohya", True, False),
    "attn-mlp": ("kohya", True, True),
    "attn-only": ("attention", True, True),
    "unet-transformer-only": ("kohya", False, True),
    "unet-convblock-only": ([rf".*\.{blocks.CONVOLUTIONS}"], False, False),
}
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
# Arguments -> our adapter's options, by what the option may be called; and the value that means "off".
OPTIONS: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "factor": (("factor",), -1),
    "decompose_both": (("decompose_both",), False),
    "use_tucker": (("use_effective_conv2d",), False),
    "use_cp": (("use_effective_conv2d",), False),
    "rank_dropout": (("rank_dropout",), 0),
    "module_dropout": (("module_dropout",), 0),
    "rank_dropout_scale": (("rank_dropout_scale",), False),
    "rs_lora": (("rank_stabilised",), False),
    "full_matrix": (("full_matrix",), False),
    "use_scalar": (("use_scalar",), False),
    "train_norm": (("train_norm",), False),
    "bypass_mode": (("bypass_mode",), False),
    "train_on_input": (("train_on_input",), True),
    "constrain": (("constrain",), 0),
    "constraint": (("constraint",), 0),
    "rescaled": (("rescaled",), False),
    "unit": (("unit",), 1),
    "block_size": (("block_size",), 1),
    "loraplus_lr_ratio": ((), 0),
    "loraplus_unet_lr_ratio": ((), 0),
    "loraplus_text_encoder_lr_ratio": ((), 0),
}
NETWORK_ARGUMENTS = (
    *OPTIONS,
    "dropout",
    "conv_dim",
    "conv_alpha",
    "algo",
    "preset",
    "dora_wd",
    "block_lr_zero_threshold",
)
BLOCK_ARGUMENTS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
RATE_ARGUMENTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
NETWORK_ARGUMENTS = (*NETWORK_ARGUMENTS, *BLOCK_ARGUMENTS, *RATE_ARGUMENTS)
"""Every argument with a meaning; the window's fields have the same names."""


class Network:
    """The module and the arguments of a network, each judged once."""

    def __init__(self, work: Translation):
        self.work = work
        self.arguments = pairs_of(work.value("network_args"))
        self.module = str(work.value("network_module", "networks.lora"))
        self.lycoris = self.module.startswith("lycoris")
        self.rank = work.whole("network_dim") or RANK
        self._plain_convolutions = self._one_rate = False
        self.alpha = work.number("network_alpha", ALPHA) or float(self.rank)

    def layers_of_text(self) -> bool:
        """Say whether the layers asked for include the text encoder's."""
        return not self.lycoris or LAYER_SETS.get(self._preset(), LAYER_SETS["full"])[1]

    def _preset(self) -> str:
        return str(self.arguments.get("preset", self.arguments.get("LyCORIS_preset", "full")))

    def translate(self, rate: float, *, one_rate: bool = False) -> None:
        """Set rank, alpha, adapter, targets and layers.

        Args:
            rate: the UNet's, which block weights multiply.
            one_rate: the optimizer allows no other.
        """
        self._one_rate = one_rate
        work = self.work
        work.same("network_dim", "lora_rank", self.rank, default=RANK)
        work.same("network_alpha", "lora_alpha", self.alpha, default=ALPHA)
        adapter = self._adapter()
        self._dropout(adapter)
        convolved = self._targets()
        layers = self._layers(rate, convolved)
        if layers:
            work.put("lora_layers", layers, said=", ".join(name for name in self.arguments if _is_layer(name)))
        self._rest(adapter)
        if not work.judged("network_args"):
            work.understood("network_args")

    def _dropout(self, adapter: str) -> None:
        """Set `lora_dropout`, where the kind of adapter has inputs to drop; a network's argument counts for it too."""
        work = self.work
        alone = self._number("dropout") or 0
        dropout = work.number("network_dropout", 0) or alone
        keys = [key for key in ("network_dropout",) if work.has(key)]
        drops = getattr(registry.load("adapters", adapter), "DROPS_INPUTS", True)
        target = f"lora_dropout: {shown(dropout)}"
        if "dropout" in self.arguments:
            verdict = (CHANGED if drops else UNSUPPORTED) if alone else UNDERSTOOD
            reason = Note("import.why.dropout", {}) if drops else Note("import.why.no_argument", {"name": adapter})
            self._tell("dropout", verdict, target if alone and drops else "", reason if alone else None)
        if dropout and drops:
            work.put("lora_dropout", dropout, *keys, said="" if keys else "dropout")
        for key in keys:
            if not dropout:
                work.understood(key)
            elif drops:
                work.changed(key, "import.why.dropout", target)
            else:
                work.unsupported(key, "import.why.no_argument", name=adapter)

    def _adapter(self) -> str:
        """Choose the kind of adapter and set its options."""
        work, known = self.work, registry.names("adapters")
        algorithm = str(self.arguments.get("algo", "lora")).lower()
        name = ALGORITHMS.get(algorithm, "") if self.lycoris or "algo" in self.arguments else "lora"
        modules = ("networks.lora", "lycoris.kohya")
        if self.module not in modules or name not in known:
            kind = self.module if self.module not in modules else algorithm
            work.unsupported("network_module", "import.why.no_network", kind=kind, known=", ".join(known))
            if "algo" in self.arguments:
                self._tell(
                    "algo", UNSUPPORTED, note=Note("import.why.no_network", {"kind": kind, "known": ", ".join(known)})
                )
            name = "lora"
        else:
            work.understood("network_module", f"adapter: {name}")
            if "algo" in self.arguments:
                self._tell("algo", UNDERSTOOD, f"adapter: {name}")
        if to_flag(self.arguments.get("dora_wd", False)) and name == "lora" and "dora" in known:
            name = "dora"
            self._tell("dora_wd", UNDERSTOOD, "adapter: dora")
        elif "dora_wd" in self.arguments:
            off = not to_flag(self.arguments["dora_wd"])
            note = None if off else Note("import.why.no_argument", {"name": name})
            self._tell("dora_wd", UNDERSTOOD if off else UNSUPPORTED, note=note)
        options = self._options(name)
        work.put("adapter", {"name": name, **options} if options else name, "network_module")
        return name

    def _options(self, name: str) -> dict[str, Any]:
        """Return the adapter's options that arguments of the network name."""
        config = registry.load("adapters", name).Config
        options: dict[str, Any] = {}
        for key, (names, off) in OPTIONS.items():
            if key not in self.arguments:
                continue
            value = self.arguments[key]
            option = next((one for one in names if one in config.model_fields), None)
            if value in (None, "") or (value == off and type(off) is not bool) or value is off:
                self._tell(key, UNDERSTOOD)
            elif option is not None and _fits(config, {**options, option: value}):
                options[option] = value
                self._tell(key, UNDERSTOOD, f"adapter.{option}: {shown(value)}")
            else:
                self._tell(key, UNSUPPORTED, note=Note("import.why.no_argument", {"name": name}))
        return options

    def _targets(self) -> bool:
        """Set which layers learn; return whether 3x3 convolutions are among them."""
        work = self.work
        if self.lycoris:
            preset = self._preset()
            targets, _, exact = LAYER_SETS.get(preset, LAYER_SETS["full"])
            target = f"lora_targets: {shown(targets)}"
            key = "LyCORIS_preset" if "LyCORIS_preset" in self.arguments else "preset"
            if exact and preset in LAYER_SETS:
                self._tell(key, UNDERSTOOD, target, value=preset)
            else:
                self._tell(key, CHANGED, target, Note("import.why.layer_set", {"name": preset}), value=preset)
            work.put("lora_targets", targets, said=f"preset = {preset}")
            return preset not in ("full-lin", "attn-mlp", "attn-only", "unet-transformer-only")
        convolved = "conv_dim" in self.arguments or "conv_block_dims" in self.arguments
        work.put("lora_targets", "kohya+conv" if convolved else "kohya", "network_module")
        return convolved

    def _layers(self, rate: float, convolved: bool) -> list[dict[str, Any]]:
        """Return `lora_layers`: convolutions and blocks whose rank, alpha or rate is not the run's."""
        conv = (to_whole(self._argument("conv_dim"), "conv_dim"), self._number("conv_alpha"))
        default = (self.rank, self.alpha) if self.lycoris else (self.rank, ALPHA)
        conv_rank = conv[0] or default[0]
        conv_alpha = (conv[1] or default[1]) if conv[1] != 0 else float(conv_rank)
        for key, value in zip(("conv_dim", "conv_alpha"), (conv_rank, conv_alpha), strict=True):
            if key in self.arguments:
                place = f"lora_layers: {'rank' if key == 'conv_dim' else 'alpha'} {shown(value)}"
                self._tell(key, UNDERSTOOD, place if convolved else "")
        layers = self._block_layers(rate, convolved, (conv_rank, conv_alpha))
        # A section that earlier ones leave no layer to would be refused.
        left = self._plain_convolutions or not layers
        if convolved and left and (conv_rank, conv_alpha) != (self.rank, self.alpha):
            match = rf".*\.{blocks.CONVOLUTIONS}"
            layers.append({"match": match, "rank": conv_rank, "alpha": conv_alpha})
        return layers

    def _block_layers(self, rate: float, convolved: bool, conv: tuple[int, float]) -> list[dict[str, Any]]:
        given = [key for key in (*BLOCK_ARGUMENTS, *RATE_ARGUMENTS) if self.arguments.get(key) not in (None, "")]
        count = self._block_count(given) if given else blocks.OLD
        starts = blocks.starts(count) if given else []
        for key in (*BLOCK_ARGUMENTS, *RATE_ARGUMENTS, "block_lr_zero_threshold"):
            if key in RATE_ARGUMENTS and key in given and starts and self._one_rate:
                self._tell(key, CHANGED, "lora_layers", Note("import.why.one_rate", {}))
            elif key in self.arguments and (key not in given or starts):
                self._tell(key, UNDERSTOOD, "lora_layers" if key in given else "")
            elif key in self.arguments:
                self._tell(key, UNSUPPORTED, note=Note("import.why.no_blocks", {"count": count}))
        if not given or starts is None:
            return []
        lists = zip(
            starts,
            zip(self._list("block_dims", count, self.rank), self._list("block_alphas", count, self.alpha), strict=True),
            zip(
                self._list("conv_block_dims", count, conv[0]),
                self._list("conv_block_alphas", count, conv[1]),
                strict=True,
            ),
            self._rate_weights(count),
            strict=True,
        )
        groups: dict[tuple[bool, float, float, float], list[str]] = defaultdict(list)
        for paths, own, own_conv, weight in lists:
            plain = (*own, weight) == (self.rank, self.alpha, 1.0)
            if not plain:
                groups[False, own[0] if weight else 0, own[1], weight] += blocks.linear(paths, convolved=convolved)
            if convolved and not (plain and (*own_conv, weight) == (*conv, 1.0)):
                groups[True, own_conv[0] if weight else 0, own_conv[1], weight] += blocks.convolutional(paths)
            elif convolved:
                self._plain_convolutions |= bool(blocks.convolutional(paths))
        return [
            _layer(blocks.pattern(paths, convolutions=is_conv), rank, alpha, weight * rate if weight != 1 else None)
            for (is_conv, rank, alpha, weight), paths in sorted(groups.items(), key=lambda item: not item[0][0])
            if paths
        ]

    def _block_count(self, given: list[str]) -> int:
        """Return how many blocks the lists are for: from their lengths, else from the base."""
        for key in given:
            length = len(self._values(key))
            if key in BLOCK_ARGUMENTS:
                return length
            if key in ("down_lr_weight", "up_lr_weight") and length in (9, 12):
                return blocks.NEW if length == 9 else blocks.OLD
        if len(self._values("mid_lr_weight")) > 1:
            return blocks.NEW
        return blocks.count_for(str(self.work.tree.get("base_model", ""))) or blocks.OLD

    def _rate_weights(self, count: int) -> list[float]:
        """Return the factor of the UNet's rate by block; 0 leaves a block out."""
        if not any(self.arguments.get(key) not in (None, "") for key in RATE_ARGUMENTS):
            return [1.0] * count
        threshold = self._number("block_lr_zero_threshold") or 0.0
        weights: list[float] = []
        for key, length in zip(RATE_ARGUMENTS, blocks.sides(count), strict=True):
            side = self._side(key, length)
            weights += [self._weight(one, threshold) for one in side] if side else [1.0] * length
        return [1.0, *weights, 1.0] if count == blocks.NEW else weights

    def _weight(self, value: float, threshold: float) -> float:
        if value <= threshold:
            return 0.0
        return 1.0 if self._one_rate else value

    def _side(self, key: str, length: int) -> list[float]:
        """Return one side's factors: a list filled up with 1, or a named curve with a constant added, "sine+.25"."""
        value = self.arguments.get(key)
        if value in (None, ""):
            return []
        text = str(value)
        name, _, added = text.partition("+")
        rise = [index / max(1, length - 1) for index in range(length)]
        curves = {
            "sine": [math.sin(math.pi * one / 2) for one in rise],
            "cosine": [math.sin(math.pi * one / 2) for one in reversed(rise)],
            "linear": rise,
            "reverse_linear": rise[::-1],
            "zeros": [0.0] * length,
        }
        if name in curves:
            return [one + (to_number(added or 0, key) or 0.0) for one in curves[name]]
        values = [float(to_number(one or 0, key) or 0.0) for one in self._values(key)]
        return (values + [1.0] * length)[:length]

    def _list(self, key: str, count: int, default: float) -> list[Any]:
        if self.arguments.get(key) in (None, ""):
            return [default] * count
        values = [to_number(one, key) for one in self._values(key)]
        if len(values) != count:
            raise ConfigError("import.bad_blocks", key=key, found=len(values), wanted=count)
        return [int(one) if "dims" in key and one is not None else one for one in values]

    def _values(self, key: str) -> list[Any]:
        value = self.arguments.get(key)
        if isinstance(value, list):
            return value
        return [] if value in (None, "") else str(value).split(",")

    def _argument(self, key: str) -> Any:
        value = self.arguments.get(key)
        return None if value == "" else value

    def _number(self, key: str) -> float | None:
        return to_number(self._argument(key), key)

    def _rest(self, adapter: str) -> None:
        """Say of the arguments that nobody knew that they have no effect."""
        for key, value in self.arguments.items():
            if self._written(key) not in self.work.lines:
                note = Note("import.why.no_argument", {"name": adapter})
                self.work.tell(Line(self._written(key), shown(value), UNSUPPORTED, note=note))

    def _written(self, key: str) -> str:
        # The window has a field of its own for most of them.
        alone = self.work.settings.get(key)
        return alone.written if alone is not None else f"{self.work.written('network_args')}.{key}"

    def _tell(self, key: str, verdict: str, target: str = "", note: Note | None = None, value: Any = None) -> None:
        given = key in self.arguments
        said = self.arguments.get(key) if given else value
        self.work.tell(Line(self._written(key), shown(said), verdict, target, note, given))


def _fits(config: Any, options: Mapping[str, Any]) -> bool:
    try:
        config.model_validate(options)
    except ValidationError:
        return False
    return True


def _layer(match: str, rank: float, alpha: float, rate: float | None) -> dict[str, Any]:
    layer: dict[str, Any] = {"match": match, "rank": int(rank)}
    if rank:
        layer["alpha"] = alpha or float(rank)
        if rate is not None:
            layer["learning_rate"] = rate
    return layer


def _is_layer(name: str) -> bool:
    return name in (*BLOCK_ARGUMENTS, *RATE_ARGUMENTS, "conv_dim", "conv_alpha")
