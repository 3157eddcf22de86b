"""From a YAML file and `--set` overrides to a `RunConfig`, or to every problem at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml.error import YAMLError

from lora_scripts import registry
from lora_scripts.config import sets
from lora_scripts.config.schema import RunConfig, default_choice
from lora_scripts.errors import ConfigError, Problem
from lora_scripts.messages import printable

MAX_BYTES = 1 << 20
MAX_ALIASES = 32
MAX_DEPTH = 20
# What the YAML library raises on odd values besides its own errors: dates that are none, numbers of a million digits.
_NOT_YAML = (YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
_CHOICES = {"optimizer": "optimizers", "schedule": "schedules", "adapter": "adapters"}
_NAMES = {"family": "families", "objective": "objectives"}


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a config file.

    Args:
        path: the YAML file.
        overrides: "a.b=c" strings; they replace what the file says before validation.

    Raises:
        ConfigError: with every problem, each with its file and line.
    """
    tree, lines = _read(path)
    problems: list[Problem] = []
    for override in overrides:
        _override(tree, lines, override, problems)
    return _validate(tree, lines, str(path), problems)


def from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """Validate a mapping, as the Python API does; problems name no file."""
    return _validate(dict(mapping), {}, "", [])


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """Return the file as plain dicts and lists, and "file:line" by dotted path."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.tokens import AliasToken

    try:
        exists = path.is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise ConfigError("config.no_file", path=path, known=", ".join(near[:5]) or "-")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError("config.too_large", path=path, size=path.stat().st_size, limit=MAX_BYTES)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if _depth(text) > MAX_DEPTH:
            raise ConfigError("config.too_deep", path=path, limit=MAX_DEPTH)
        yaml = YAML(typ="rt", pure=True)
        if sum(isinstance(token, AliasToken) for token in yaml.scan(text)) > MAX_ALIASES:
            raise ConfigError("config.aliases", path=path, limit=MAX_ALIASES)
        tree = YAML(typ="rt", pure=True).load(text)
        lines: dict[tuple[str, ...], str] = {}
        plain = _plain(tree, (), str(path), lines)
    except UnicodeDecodeError as error:
        raise ConfigError("config.not_utf8", path=path, position=error.start) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = printable((error.problem or error.context or "").split("\n")[0])
        problem = Problem("config.not_yaml", {"reason": reason}, where)
        raise ConfigError(problems=[problem]) from error
    except _NOT_YAML as error:
        raise ConfigError(
            problems=[Problem("config.not_yaml", {"reason": printable(str(error)[:200])}, str(path))]
        ) from error
    if not isinstance(plain, dict):
        raise ConfigError("config.not_mapping", path=path)
    return plain, lines


def _depth(text: str) -> int:
    """Return how deep brackets nest, counted roughly: the parser's time grows with its square."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def _plain(node: Any, at: tuple[str, ...], file: str, lines: dict[tuple[str, ...], str]) -> Any:
    if isinstance(node, dict):
        marks: Any = getattr(node, "lc")  # noqa: B009 - ruamel's round-trip mapping knows its lines
        for key in node:
            place = (marks.data or {}).get(key)
            lines[(*at, str(key))] = f"{file}:{place[0] + 1}" if place else file
        return {str(key): _plain(value, (*at, str(key)), file, lines) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value, (*at, str(i)), file, lines) for i, value in enumerate(node)]
    if isinstance(node, bool) or type(node).__name__ == "ScalarBoolean":
        return bool(node)
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node if node is None else str(node)


def _override(tree: dict, lines: dict, override: str, problems: list[Problem]) -> None:
    from ruamel.yaml import YAML

    dotted, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", dotted) or _depth(text) > MAX_DEPTH:
        problems.append(Problem("config.bad_override", {"value": override}, "--set"))
        return
    try:
        value = YAML(typ="safe", pure=True).load(text) if text else ""
    except _NOT_YAML:
        value = text
    keys = dotted.split(".")
    node = tree
    for key in keys[:-1]:
        child = node.get(key)
        if not isinstance(child, dict):
            child = {} if child is None or isinstance(child, bool) else {"name": child}
            node[key] = child
        node = child
    node[keys[-1]] = value
    for stale in [at for at in lines if at[: len(keys)] == tuple(keys)]:
        del lines[stale]
    lines[tuple(keys)] = f"--set {override}"


def _validate(tree: dict, lines: Mapping, file: str, problems: list[Problem]) -> RunConfig:
    config = None
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems += [_problem(row, tree, lines, file, RunConfig) for row in error.errors()]
    for key, kind in _CHOICES.items():
        problems += _check_choice(key, kind, tree.get(key), lines, file)
    for key, kind in _NAMES.items():
        name = tree.get(key, "auto")
        if name != "auto":
            problems += _check_name(kind, name, _where((key,), lines, file))
    exporters = tree.get("exporters", ())
    for i, name in enumerate(exporters if isinstance(exporters, list) else ()):
        problems += _check_name("exporters", name, _where(("exporters", str(i)), lines, file))
    problems += _check_together(tree, lines, file)
    if config is not None:
        problems += sets.problems(config, lambda at: _where(at, lines, file))
    if problems or config is None:
        raise ConfigError(problems=sorted(problems, key=lambda p: _order(p.where)))
    return config


def _check_together(tree: Mapping, lines: Mapping, file: str) -> list[Problem]:
    """Return what is wrong between keys that are right on their own."""
    found: list[Problem] = []
    if not tree.get("train_data_dir") and not tree.get("datasets"):
        found.append(Problem("config.missing", {"key": "train_data_dir"}, file))
    if tree.get("train_data_dir") and tree.get("datasets"):
        found.append(Problem("config.two_data", {}, _where(("datasets",), lines, file)))
    halves = {"bf16", "fp16"}
    base, mixed = tree.get("base_precision"), tree.get("mixed_precision")
    if base in halves and mixed in halves and base != mixed:
        found.append(
            Problem("config.halves_differ", {"base": base, "mixed": mixed}, _where(("mixed_precision",), lines, file))
        )
    validation = tree.get("validation")
    wanted = str(validation.get("use_best", "")).lower() if isinstance(validation, dict) else ""
    if isinstance(validation, dict) and wanted in ("true", "on", "yes") and validation.get("every"):
        every, save = validation["every"], tree.get("save_steps", RunConfig.model_fields["save_steps"].default)
        if not isinstance(every, int) or not isinstance(save, int) or every % save:
            place = _where(("validation", "every"), lines, file)
            found.append(Problem("config.best_every", {"every": every, "save": save}, place))
    if tree.get("epochs") is not None and tree.get("steps") not in (None, "auto"):
        values = {"epochs": tree["epochs"], "steps": tree["steps"]}
        found.append(Problem("config.epochs_and_steps", values, _where(("steps",), lines, file)))
    if base == "float64" and mixed in halves:
        found.append(Problem("config.float64_mixed", {"mixed": mixed}, _where(("mixed_precision",), lines, file)))
    if tree.get("metadata_path") and not tree.get("train_data_dir"):
        found.append(Problem("config.metadata_alone", {}, _where(("metadata_path",), lines, file)))
    return found


def _order(where: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (where, 0)


def _check_name(kind: str, name: Any, where: str) -> list[Problem]:
    try:
        registry.load(kind, str(name))
    except ConfigError as error:
        return [Problem(error.code, error.params, where)]
    return []


def _check_choice(key: str, kind: str, value: Any, lines: Mapping, file: str) -> list[Problem]:
    if value is None:
        return []
    name = value.get("name", default_choice(key)) if isinstance(value, dict) else value
    wrong = _check_name(kind, name, _where((key,), lines, file))
    if wrong or not isinstance(value, dict):
        return wrong
    options = {k: v for k, v in value.items() if k != "name"}
    model: type[BaseModel] = registry.load(kind, name).Config
    try:
        model.model_validate(options)
    except ValidationError as error:
        return [_problem(row, options, lines, file, model, prefix=(key,)) for row in error.errors()]
    return []


def _where(at: tuple[str, ...], lines: Mapping, file: str) -> str:
    """Return the nearest known place of a dotted path."""
    for length in range(len(at), 0, -1):
        if at[:length] in lines:
            return lines[at[:length]]
    return file


def _problem(
    row: Any, tree: Any, lines: Mapping, file: str, model: type[BaseModel], prefix: tuple[str, ...] = ()
) -> Problem:
    """Turn one of pydantic's errors into one of our sentences."""
    at = _location(row["loc"], tree)
    where = _where(prefix + at, lines, file)
    dotted = printable(".".join(prefix + at))
    kind, context = row["type"], row.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(model, at[:-1])
        near = registry.nearest(at[-1], known)
        code = "config.unknown_near" if near else "config.unknown_key"
        return Problem(code, {"key": dotted, "nearest": near or "", "known": ", ".join(known)}, where)
    if kind == "missing":
        return Problem("config.missing", {"key": dotted}, where)
    value = _shown(row.get("input"))
    if "expected" in context:
        return Problem("config.not_allowed", {"key": dotted, "value": value, "allowed": context["expected"]}, where)
    bounds = [f"{sign} {context[name]}" for name, sign in _BOUNDS.items() if name in context]
    if bounds:
        return Problem("config.out_of_range", {"key": dotted, "value": value, "allowed": " ".join(bounds)}, where)
    allowed = str(context["error"]) if "error" in context else _KINDS.get(kind, row["msg"])
    return Problem("config.wrong_type", {"key": dotted, "value": value, "allowed": allowed}, where)


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "pattern": "pattern"}
_KINDS = {
    "int_parsing": "int",
    "int_type": "int",
    "int_from_float": "int",
    "float_parsing": "float",
    "float_type": "float",
    "bool_parsing": "true / false",
    "bool_type": "true / false",
    "string_type": "text",
    "path_type": "path",
    "tuple_type": "list",
    "model_type": "section",
    "finite_number": "float",
}


def _location(loc: tuple[int | str, ...], tree: Any) -> tuple[str, ...]:
    """Keep the parts of pydantic's location that are keys of the file (a union adds its branches' names)."""
    kept: list[str] = []
    node = tree
    for part in loc:
        inside_list = isinstance(node, list) and isinstance(part, int)
        if isinstance(node, dict) or inside_list or not kept:
            kept.append(str(part))
            node = node.get(part) if isinstance(node, dict) else node[part] if inside_list else None
    return tuple(kept)


def _fields_at(model: type[BaseModel], at: tuple[str, ...]) -> list[str]:
    for part in at:
        field = model.model_fields.get(part)
        inner = _inner_model(field.annotation) if field else None
        model = inner or model
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner_model, getattr(annotation, "__args__", ()))), None)


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else f'"{printable(value)}"'
    return text if len(text) <= 80 else text[:77] + "..."
