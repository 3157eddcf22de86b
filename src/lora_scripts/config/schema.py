"""Every key of a config file, with its type, range and default.

What a key means stands in the message catalogue under `config.key.<dotted path>`, in both languages.
A key marked `FREE` does not change the trained weights: it may differ when a run is resumed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict

FREE: JsonDict = {"resume": "free"}


class Section(BaseModel):
    """Frozen; an unknown key is an error; a number stays a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choice(Section):
    """A plug-in by name, with that plug-in's own options: "adamw" or {name: adamw, weight_decay: 0.01}."""

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "options" not in value:
            return {"name": value.get("name"), "options": {k: v for k, v in value.items() if k != "name"}}
        return value


Chance = Annotated[float, Field(ge=0, le=1)]
OFF = ("off", "no", "none")


def _mask(value: Any) -> Any:
    """A mask's "off" in any spelling is one; a folder's name must be one."""
    if value is False or (isinstance(value, str) and value.lower() in OFF):
        return OFF[0]
    if value == "" or (isinstance(value, str) and ("\0" in value or len(os.fsencode(value)) > 4096)):
        raise ValueError("alpha, off, or a folder")
    return value


Mask = Annotated[str, BeforeValidator(_mask)]


class CaptionSection(Section):
    """How captions vary from visit to visit."""

    trigger: str = ""
    shuffle: bool = False
    keep_tokens: int = Field(0, ge=0)
    keep_separator: str = ""
    keep_tags: tuple[str, ...] = ()
    tag_dropout: float = Field(0.0, ge=0, le=1)
    tag_chances: dict[str, Chance] = {}
    dropout: float = Field(0.0, ge=0, le=1)
    prefix: str = ""
    suffix: str = ""


class DatasetSection(Section):
    """One folder of a list of data sets."""

    path: Path
    metadata: Path | None = None
    repeats: int = Field(1, ge=1, le=10_000)
    weight: float = Field(1.0, gt=0, le=1000)
    caption: CaptionSection | None = None
    class_words: str = ""
    flip: bool | None = None
    mask: Mask | None = None
    regularisation: bool = False
    visits: int | None = Field(None, ge=1, le=100_000_000)


class LayerSection(Section):
    """Rank, alpha and rate of the layers that one pattern matches; what is left out is the run's."""

    match: str = Field(min_length=1)
    rank: int | None = Field(None, ge=0, le=1024)
    alpha: float | None = Field(None, gt=0, le=100_000)
    learning_rate: float | None = Field(None, gt=0, le=10)


class TextEncoderSection(Section):
    """Whether the text encoder learns too, and how fast."""

    enabled: bool = False
    learning_rate: float | None = Field(None, gt=0, le=10)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _switch(value)


class PreviewSection(Section):
    """What is drawn at each save, with the base beside it."""

    enabled: bool = True
    prompts: tuple[str, ...] = ()
    count: int = Field(4, ge=1, le=64)
    steps: int = Field(20, ge=1, le=1000)
    guidance: float = Field(3.0, ge=0, le=50)
    new_tokens: int = Field(64, ge=1, le=4096)
    seed: int = Field(1, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _switch(value)


class ValidationSection(Section):
    """The held-out part and how often it is measured."""

    enabled: bool = False
    share: float = Field(0.1, gt=0, lt=1)
    paths: tuple[Path, ...] = ()
    answers: int = Field(32, ge=0, le=100_000)
    use_best: bool = False
    every: int | None = Field(None, ge=1)
    levels: int = Field(4, ge=1, le=64)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _switch(value)

    @field_validator("paths", mode="before")
    @classmethod
    def _path_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


def _switch(value: Any) -> Any:
    """`true`, `false`, or a section that is on unless it says otherwise."""
    if isinstance(value, bool):
        return {"enabled": value}
    if isinstance(value, str) and value.lower() in ("true", "on", "yes", "false", "off", "no"):
        return {"enabled": value.lower() in ("true", "on", "yes")}
    return {"enabled": True, **value} if isinstance(value, dict) and value else value


Resolution = Annotated[int, Field(ge=8, le=8192)]
Precision = Literal["auto", "float32", "bf16", "fp16"]
BasePrecision = Literal["auto", "float64", "float32", "bf16", "fp16", "fp8", "nf4"]


class RunConfig(Section):
    """A whole training run."""

    train_data_dir: Path | None = None
    metadata_path: Path | None = None
    datasets: tuple[DatasetSection, ...] = ()
    mask: Mask | None = None
    missing_pictures: Literal["error", "ignore"] = "error"
    max_bad_fraction: float = Field(0.1, ge=0, le=1)

    base_model: str = Field(min_length=1)
    family: str = "auto"
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    resolution: tuple[Resolution, ...] = ()

    output_dir: Path
    name: str = Field("", pattern=r"^[^:<>=,/\\\x00-\x1f]{0,100}$")
    seed: int = Field(42, ge=0, lt=2**63)

    lora_rank: int = Field(8, ge=1, le=1024)
    lora_alpha: float | None = Field(None, gt=0, le=100_000)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_layers: tuple[LayerSection, ...] = ()
    adapter: Choice = Choice(name="lora")
    lora_targets: str | tuple[str, ...] = "auto"
    init_lora: Path | None = None
    train_text_encoder: TextEncoderSection = TextEncoderSection()

    objective: str = "auto"
    batch_size: int = Field(1, ge=1, le=4096)
    gradient_accumulation: int | None = Field(None, ge=1, le=4096)
    epochs: int = Field(10, ge=1, le=1_000_000)
    steps: int | None = Field(None, ge=1, le=100_000_000)
    learning_rate: float = Field(1e-4, gt=0, le=10)
    optimizer: Choice = Choice(name="adamw")
    schedule: Choice = Choice(name="cosine")
    warmup: int | str = "5%"
    max_grad_norm: float | None = Field(1.0, gt=0)
    not_finite: Literal["stop", "skip", "roll_back"] = Field("stop", json_schema_extra=FREE)
    not_finite_limit: int = Field(3, ge=1, le=1000, json_schema_extra=FREE)
    ema: float | None = Field(None, gt=0, lt=1)

    caption: CaptionSection = CaptionSection()
    flip: bool = False
    clip_skip: int = Field(1, ge=1, le=12)
    mask_floor: float = Field(0.0, ge=0, le=1)
    prior: Literal["pictures", "base"] = "pictures"
    noise_offset: float = Field(0.0, ge=0, le=1)
    min_snr_gamma: float | None = Field(None, gt=0, le=1000)
    loss: Literal["mse", "huber", "l1"] = "mse"

    max_length: int | None = Field(None, ge=8, le=1_000_000)
    batch_tokens: int = Field(1024, ge=8, le=100_000_000)
    train_on: Literal["completions", "last", "all"] = "completions"
    labels: tuple[str, ...] = ()
    beta: float = Field(0.1, gt=0, le=100)
    sft_weight: float = Field(0.0, ge=0, le=100)

    base_precision: BasePrecision = "auto"
    mixed_precision: Precision = "auto"
    attention: Literal["auto", "math", "flash"] = "auto"
    gradient_checkpointing: bool = False
    offload_blocks: int = Field(0, ge=0, le=1000)
    shard_base: bool = Field(False, json_schema_extra=FREE)
    process_timeout: float = Field(600.0, ge=1, le=604_800, json_schema_extra=FREE)

    save_steps: int = Field(500, ge=1, json_schema_extra=FREE)
    keep_checkpoints: int | None = Field(None, ge=1, json_schema_extra=FREE)
    keep_every: int | None = Field(None, ge=1, json_schema_extra=FREE)
    preview: PreviewSection = Field(PreviewSection(), json_schema_extra=FREE)
    validation: ValidationSection = ValidationSection()
    exporters: tuple[str, ...] = Field(("diffusers", "kohya"), min_length=1)
    cache_dir: Path | None = Field(None, json_schema_extra=FREE)

    @field_validator("resolution", mode="before")
    @classmethod
    def _resolution_list(cls, value: Any) -> Any:
        if value is None or value == "auto":
            return ()
        return value if isinstance(value, list | tuple) else (value,)

    @field_validator("optimizer", "schedule", "adapter", mode="before")
    @classmethod
    def _options_alone(cls, value: Any, info: ValidationInfo) -> Any:
        """Options without a name belong to the default plug-in."""
        if isinstance(value, dict) and "name" not in value:
            return {"name": default_choice(info.field_name or ""), **value}
        return value

    @field_validator("lora_alpha", "gradient_accumulation", "max_length", "steps", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @field_validator("ema", "max_grad_norm", "min_snr_gamma", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value is False or (isinstance(value, str) and value.lower() in OFF) else value

    @field_validator("output_dir", "train_data_dir", "metadata_path", "init_lora", "cache_dir")
    @classmethod
    def _path(cls, value: Path | None) -> Path | None:
        if value is not None and ("\0" in str(value) or any(len(os.fsencode(part)) > 255 for part in value.parts)):
            raise ValueError("a path whose parts have at most 255 bytes")
        return value

    @field_validator("learning_rate", "max_grad_norm", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if value is True:
            raise ValueError("a number")
        return value

    @field_validator("epochs", "steps", "batch_size", "lora_rank", "save_steps", "seed", mode="before")
    @classmethod
    def _not_a_switch(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("a whole number")
        return value

    @field_validator("warmup")
    @classmethod
    def _warmup(cls, value: int | str) -> int | str:
        warmup_steps(value, 100)
        return value

    @field_validator("mask")
    @classmethod
    def _no_mask(cls, value: str | None) -> str | None:
        return None if value == OFF[0] else value

    @property
    def resolved_name(self) -> str:
        """The LoRA's name: `name`, else the last part of `output_dir`."""
        return self.name or self.output_dir.resolve().name

    @property
    def resolved_alpha(self) -> float:
        """`lora_alpha`, else the rank."""
        return self.lora_alpha if self.lora_alpha is not None else float(self.lora_rank)


def warmup_steps(value: int | str, total: int) -> int:
    """Return the steps that "5%", "100 steps" or 100 mean for a run of `total` steps.

    Raises:
        ValueError: for anything else.
    """
    text = str(value).strip()
    if text.endswith("%"):
        share = float(text[:-1])
        if not 0 <= share <= 100:
            raise ValueError("0% to 100%, or a number of steps")
        return round(total * share / 100)
    number = text.removesuffix("steps").strip()
    if not number.isdigit():
        raise ValueError('such as "5%", "100 steps" or 100')
    return int(number)


def free_keys() -> frozenset[str]:
    """Return the keys that may differ when a run is resumed."""
    return frozenset(
        name
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("resume") == "free"
    )


def default_choice(key: str) -> str:
    """Return the plug-in a key names by default, such as "adamw" for `optimizer`."""
    return RunConfig.model_fields[key].default.name
