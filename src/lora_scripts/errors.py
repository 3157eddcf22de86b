"""Every error the package raises on purpose.

    LoraScriptsError            exit 1   our own fault, when raised bare
    ├── ConfigError             exit 2   the config, or what it names: every problem at once
    ├── BaseModelError          exit 2   a base or LoRA that does not fit or cannot be read
    ├── DataError               exit 3   pictures, texts, captions
    ├── CheckpointError         exit 3   a damaged or foreign checkpoint
    ├── MachineError            exit 4   disk, memory, network, a missing extra
    ├── NumericsError           exit 5   a loss or norm that is not finite
    ├── LockError               exit 6   the output folder is in use
    └── Stopped                 exit 130 a signal; the exit code is the signal's

Each carries a message code of the catalogue and its parameters; `str(error)` is the sentence in the user's language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts import messages


class LoraScriptsError(Exception):
    """Base of the tree.

    Args:
        code: key of the message catalogue, such as "base.not_found".
        params: values for the sentence's placeholders.
    """

    exit_code = 1

    def __init__(self, code: str, **params: object):
        super().__init__(code)
        self.code, self.params = code, params

    def __str__(self) -> str:
        return messages.text(self.code, **self.params)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where: "configs/my.yaml:3" or ""."""

    code: str
    params: dict[str, object]
    where: str = ""

    def __str__(self) -> str:
        sentence = messages.text(self.code, **self.params)
        return f"{self.where}: {sentence}" if self.where else sentence


class ConfigError(LoraScriptsError):
    """One or more problems of a config, told together."""

    exit_code = 2

    def __init__(self, code: str = "", *, problems: Sequence[Problem] = (), **params: object):
        self.problems = list(problems) or [Problem(code, params)]
        super().__init__(self.problems[0].code, **self.problems[0].params)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class BaseModelError(LoraScriptsError):
    """A base model or LoRA file that is absent, broken, unsafe or of another family."""

    exit_code = 2


class DataError(LoraScriptsError):
    """A data folder, picture, caption or row that cannot be used."""

    exit_code = 3


class CheckpointError(LoraScriptsError):
    """A checkpoint that is damaged, foreign or written by a newer version."""

    exit_code = 3


class MachineError(LoraScriptsError):
    """Disk, memory, network, or an extra that is not installed."""

    exit_code = 4


class NumericsError(LoraScriptsError):
    """A loss, gradient or export that is not finite, or an export that does not equal the adapter."""

    exit_code = 5


class LockError(LoraScriptsError):
    """Another process uses the output folder."""

    exit_code = 6


class Stopped(LoraScriptsError):
    """A signal ended the run after a save."""

    exit_code = 130

    def __init__(self, code: str, *, exit_code: int = 130, **params: object):
        super().__init__(code, **params)
        self.exit_code = exit_code
