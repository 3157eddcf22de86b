"""Everything labelling can be told: one frozen model, from which the flags, their checks and their help come.

What an option means stands in the message catalogue under `label.option.<name>`, in both languages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator
from pydantic.config import JsonDict

from lora_scripts import registry
from lora_scripts.config.schema import Section
from lora_scripts.data.folder import SIDE_FILE
from lora_scripts.errors import ConfigError, Problem
from lora_scripts.files import at_home

SIDECARS = "txt"
TABLES = (".csv", ".tsv", ".jsonl")
FLAGS = {"settings": "--set"}
"""Flags that are not called as their option."""
METAVAR: Mapping[str, str] = {
    "input": "FOLDER",
    "output": "FILE",
    "policy": "FILE",
    "base": "FOLDER",
    "settings": "KEY=VALUE",
    "replace": "A=B",
    "dry_run": "N",
}
KINDS = {
    "person": ("character", "人物", "角色"),
    "thing": ("object", "物品", "物件", "东西"),
    "style": ("my drawing style", "画风", "风格"),
}
"""What is learned, and what people call it besides."""
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "pattern": ""}
# What options of every run have to do with the words of a caption; the others only with how they come about.
WORDING = (
    "kind trigger class_word prefix suffix exclude replace threshold max_tags max_tokens separator underscores".split()
)
REPEATED: JsonDict = {"repeated": True}


def _kind(value: Any) -> Any:
    """Return the plain name of a kind that is called otherwise."""
    word = str(value).strip().lower()
    return next((kind for kind, others in KINDS.items() if word in (kind, *others)), value)


def _words(value: Any) -> Any:
    """Return a text on one line, without the white space around it."""
    return " ".join(value.split()) if isinstance(value, str) else value


def _home(value: Any) -> Any:
    """Return a path with "~" as the user's home."""
    return at_home(value) if isinstance(value, str | Path) else value


HomePath = Annotated[Path, BeforeValidator(_home)]
Kind = Annotated[Literal["", "person", "thing", "style"], BeforeValidator(_kind)]
Words = Annotated[str, BeforeValidator(_words)]


class LabelOptions(Section):
    """What to label, with what, and what captions should say."""

    input: HomePath
    output: HomePath = Path("metadata.csv")
    captioner: str = "clip"
    model: str | None = None
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    batch_size: int | None = Field(None, ge=1, le=4096)
    existing: Literal["keep", "relabel", "overwrite", "append", "prepend"] = "keep"
    kind: Kind = ""
    policy: HomePath | None = None
    trigger: Words = ""
    class_word: Words = ""
    prefix: Words = ""
    suffix: Words = ""
    exclude: tuple[str, ...] = Field((), json_schema_extra=REPEATED)
    replace: tuple[str, ...] = Field((), json_schema_extra=REPEATED)
    threshold: float = Field(0.0, ge=0, le=1)
    max_tags: int | None = Field(None, ge=1, le=10_000)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    base: HomePath | None = None
    separator: str = Field(", ", pattern=r"^[^\r\n]+$")
    underscores: Literal["spaces", "keep"] = "spaces"
    review: bool = True
    settings: tuple[str, ...] = Field((), json_schema_extra=REPEATED)
    dry_run: int | None = Field(None, ge=1, le=1000)

    @field_validator("exclude", mode="after")
    @classmethod
    def _split(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(tag.strip() for text in value for tag in re.split("[,\uff0c]", text) if tag.strip())

    @field_validator("replace", mode="after")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not text.rpartition("=")[0].strip():
                raise ValueError("A=B")
        return value

    @property
    def sidecars(self) -> bool:
        """Whether each caption goes into a file of its own beside its picture."""
        return str(self.output).lower() == SIDECARS

    @property
    def side_file(self) -> Path:
        """Where it is kept what is known of each caption."""
        return self.input / f"captions{SIDE_FILE}" if self.sidecars else self.output.with_suffix(SIDE_FILE)

    @property
    def replacements(self) -> dict[str, str]:
        """What is written instead of what; a tag may hold "=" itself, what stands for it may not."""
        return {a.strip(): b.strip() for a, _, b in (text.rpartition("=") for text in self.replace)}


def flag(name: str) -> str:
    """Return what the command line calls an option."""
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def read(values: Mapping[str, Any]) -> LabelOptions:
    """Return the options.

    Raises:
        ConfigError: with every problem, each naming its flag.
    """
    problems: list[Problem] = []
    options = None
    try:
        options = LabelOptions.model_validate(dict(values))
    except ValidationError as error:
        problems += [_problem(row, LabelOptions, flag(str((row["loc"] or ("",))[0]))) for row in error.errors()]
    if options is not None:
        problems += _together(options)
    if problems or options is None:
        raise ConfigError(problems=problems)
    return options if "output" in values else options.model_copy(update={"output": options.input / "metadata.csv"})


def captioner_config(model: type[BaseModel], settings: tuple[str, ...]) -> BaseModel:
    """Return a captioner's own options from "key=value" texts.

    Raises:
        ConfigError: with every problem.
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(Problem("label.bad_setting", {"value": text}))
        values[key.strip()] = _value(value)
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        names = [str((row["loc"] or ("",))[0]) for row in error.errors()]
        rows = zip(error.errors(), names, strict=True)
        problems += [_problem(row, model, f"--set {name}" if name else "--set") for row, name in rows]
    if problems:
        raise ConfigError(problems=problems)
    return config


def _value(text: str) -> Any:
    """Read a value as YAML would, as `--set` of a run's config does."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text) if text.strip() else ""
    except (YAMLError, RecursionError, ValueError, TypeError, AttributeError, KeyError, OverflowError):
        return text


def _together(options: LabelOptions) -> list[Problem]:
    """Return what is wrong between options that are right on their own."""
    problems = []
    wrong = options.output.suffix.lower() not in TABLES or options.output.name.endswith(SIDE_FILE)
    if wrong and not options.sidecars:
        allowed = ", ".join(f"NAME{suffix}" for suffix in TABLES) + f", {SIDECARS}"
        problems.append(
            Problem("config.out_of_range", {"key": "--output", "value": options.output, "allowed": allowed})
        )
    if options.kind in ("person", "thing") and not options.class_word:
        problems.append(Problem("label.no_class_word", {"kind": options.kind}))
    if options.policy is not None and not options.kind:
        problems.append(Problem("label.policy_alone", {}))
    return problems


def _problem(row: Any, model: type[BaseModel], called: str) -> Problem:
    """Turn one of pydantic's errors into one of our sentences."""
    kind, context = row["type"], row.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(model.model_fields)
        near = registry.nearest(str(row["loc"][0]), known)
        code = "config.unknown_near" if near else "config.unknown_key"
        return Problem(code, {"key": called, "nearest": near or "", "known": ", ".join(known) or "-"})
    if kind == "missing":
        return Problem("label.missing", {"flag": called})
    value = str(row.get("input"))[:80]
    bounds = " ".join(f"{sign} {context[name]}".strip() for name, sign in _BOUNDS.items() if name in context)
    allowed = context.get("expected") or bounds or str(context.get("error", row["msg"]))
    return Problem("config.out_of_range", {"key": called, "value": f'"{value}"', "allowed": allowed})
