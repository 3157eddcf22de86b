"""A survey that knows captions only, for the checks that look at nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import Problem


def survey_of(
    captions: Mapping[str, str | Sequence[str]],
    problems: Sequence[Problem] = (),
    *,
    without: Sequence[str] = (),
    broken: Sequence[str] = (),
    **settings: Any,
) -> Any:
    """Return what the checks of captions read of a survey.

    Args:
        captions: by picture; all stand in one table.
        problems: of the caption files.
        without: further pictures, that have no caption.
        broken: of the pictures, those that cannot be read.
        settings: of the doctor.
    """
    texts = {name: (each,) if isinstance(each, str) else tuple(each) for name, each in captions.items()}
    pictures = [
        SimpleNamespace(name=name, path=Path(name), sha256=name, problem=name in broken or None)
        for name in (*texts, *without)
    ]
    return SimpleNamespace(
        settings=Settings(Path(), **settings),
        pictures=pictures,
        captions=texts,
        caption_sources=dict.fromkeys(texts, Path("metadata.csv")),
        caption_problems=problems,
    )
