"""Reading a kohya project's files: TOML or JSON, never more than a config can be, one sentence where it is no such."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from lora_scripts.errors import ConfigError, DataError
from lora_scripts.files import at_home
from lora_scripts.importing.gui import from_gui, is_gui
from lora_scripts.importing.translation import Setting

MAX_BYTES = 1 << 20
# A training file says at least one of these; nearly no file of another program does.
MARKS = ("pretrained_model_name_or_path", "network_module", "train_data_dir", "dataset_config", "LoRA_type")


@dataclass(frozen=True)
class Source:
    """What was named: a training file, a data set's file, or a folder of folders.

    Attributes:
        settings: of the training file, by sd-scripts' names; empty for the others.
        data: what a data set's file says, or None where folders decide.
        data_name: that file's name.
        folder: where relative paths start.
        gui: the training file was saved by the kohya_ss window.
        overridden: settings of the file that another one of the same meaning takes the place of.
    """

    path: Path
    folder: Path
    settings: Mapping[str, Setting] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    data_name: str = ""
    gui: bool = False
    overridden: Sequence[Setting] = ()

    @property
    def trains(self) -> bool:
        """Whether the base and the rates are known, not only the data."""
        return bool(self.settings)

    def find(self, name: str) -> Path:
        """Return where a path of the file leads: beside the file first, then from the current folder."""
        path = at_home(name)
        if path.is_absolute() or PureWindowsPath(name).is_absolute():
            return path
        beside = self.folder / path
        # What does not exist yet lies where its first folder does.
        for tried, here in ((beside, path), (self.folder / path.parts[0], Path(path.parts[0]))) if path.parts else ():
            if tried.exists() or here.exists():
                return beside if tried.exists() else path.absolute()
        return beside


def open_source(path: Path) -> Source:
    """Read what was named, and the data set's file that it names.

    Raises:
        ConfigError: it is not there, cannot be read, or is no kohya project.
        DataError: a folder without folders such as 10_name.
    """
    path = at_home(path).absolute()
    if path.is_dir():
        return _folder(path)
    tree = read_tree(path)
    if is_data(tree):
        return Source(path, path.parent, data=tree, data_name=path.name)
    settings, overridden, gui = _settings(tree, path)
    source = Source(path, path.parent, settings, gui=gui, overridden=overridden)
    named = settings.get("dataset_config")
    if named is None or not named.value:
        return source
    data_path = source.find(str(named.value))
    data = read_tree(data_path)
    if not is_data(data):
        raise ConfigError("import.no_datasets", path=data_path)
    return replace(source, data=data, data_name=data_path.name)


def read_tree(path: Path) -> dict[str, Any]:
    """Return a TOML or JSON file as a mapping.

    Raises:
        ConfigError: see `open_source`.
    """
    if not path.is_file():
        near = sorted(p.name for p in path.parent.iterdir())[:5] if path.parent.is_dir() else []
        raise ConfigError("import.no_file", path=path, known=", ".join(near) or "-")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError("import.too_large", path=path, limit=MAX_BYTES // 1024)
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("import.not_text", path=path, position=error.start) from error
    except OSError as error:
        raise ConfigError("import.unreadable", path=path, reason=error.strerror or error) from error
    if "\0" in text:
        raise ConfigError("import.not_text", path=path, position=text.index("\0"))
    try:
        tree = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    # ValueError covers both libraries' own errors; deep brackets end in a RecursionError.
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise ConfigError("import.not_parsed", path=path, kind=kind, reason=str(error).split("\n")[0][:200]) from error
    if not isinstance(tree, dict):
        raise ConfigError("import.not_mapping", path=path, found=type(tree).__name__)
    return tree


def is_data(tree: Mapping[str, Any]) -> bool:
    """Say whether a file describes data sets: a list of tables under `datasets`."""
    sets = tree.get("datasets")
    return isinstance(sets, list) and bool(sets) and all(isinstance(one, dict) for one in sets)


def _settings(tree: Mapping[str, Any], path: Path) -> tuple[dict[str, Setting], list[Setting], bool]:
    """Return a training file's settings without its sections, whose names mean nothing to sd-scripts."""
    flat: dict[str, Setting] = {}
    written: list[Setting] = []
    for key, value in tree.items():
        inner = value if isinstance(value, dict) else {key: value}
        written += [Setting(name, one) for name, one in inner.items()]
        flat |= {name: Setting(name, one) for name, one in inner.items()}
    if not set(MARKS) & flat.keys():
        raise ConfigError("import.not_kohya", path=path, keys=", ".join(list(flat)[:5]) or "-")
    gui = is_gui(flat)
    if gui:
        flat = from_gui(flat)
    settings = flat | _command_line(flat)
    counting = {setting.written for setting in settings.values()}
    return settings, [setting for setting in written if setting.written not in counting], gui


def _command_line(flat: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings inside the window's field for further arguments: "--name value --switch"."""
    extra = flat.get("additional_parameters")
    if extra is None or not str(extra.value or "").strip():
        return {}
    try:
        words = shlex.split(str(extra.value))
    except ValueError as error:
        raise ConfigError("import.bad_value", key="additional_parameters", value=str(extra.value)[:80]) from error
    found: dict[str, Setting] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = Setting(f"additional_parameters.{name}", value if equals else True)
        elif name:
            old = found[name].value
            values = [word] if old is True else [*(old if isinstance(old, list) else [old]), word]
            found[name] = Setting(f"additional_parameters.{name}", values[0] if len(values) == 1 else values)
    return found


def _folder(path: Path) -> Source:
    if not numbered_folders(path):
        inside = sorted(p.name for p in path.iterdir())[:5]
        raise DataError("import.no_numbered", path=path, found=", ".join(inside) or "-")
    return Source(path, path)


def numbered_folders(path: Path) -> list[tuple[Path, int, str]]:
    """Return (folder, repeats, class words) of each folder such as "10_red cat"; those with 0 are off there too."""
    found = []
    for folder in sorted(path.iterdir()) if path.is_dir() else []:
        number, _, words = folder.name.partition("_")
        if folder.is_dir() and number.strip().isdecimal() and int(number) > 0:
            found.append((folder, int(number), words))
    return found
