"""Write docs/config.md and docs/errors.md from the schema and the message catalogue.

python tools/write_docs.py          writes the files
python tools/write_docs.py --check  exits 1 when a file is not what would be written
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_scripts import errors, messages, registry
from lora_scripts.config import schema

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    "DatasetSection": "dataset",
    "CaptionSection": "caption_rules",
    "LayerSection": "layer",
    "TextEncoderSection": "text_encoder",
    "PreviewSection": "previews",
    "ValidationSection": "validating",
}
MISSION = (
    "train_data_dir metadata_path base_model lora_rank batch_size epochs learning_rate output_dir save_steps".split()
)


def type_of(field: Any) -> str:
    """Return a field's type in plain words with its range."""
    text = str(field.annotation)
    choices = re.findall(r"'([\w]+)'", text) if "Literal" in text else []
    words = {"bool": "switch", "int": "whole number", "float": "number", "str": "text", "Path": "path"}
    if choices:
        kind = " / ".join(f"`{choice}`" for choice in choices)
    elif any(name in text for name in (*SECTIONS, "Choice")):
        kind = "section" if "tuple" not in text else "list of sections"
    else:
        found = [word for name, word in words.items() if re.search(rf"\b{name}\b", text)]
        kind = ("list of " if "tuple" in text else "") + (" or ".join(found) or "value")
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    return kind + (f", {' and '.join(bounds)}" if bounds else "")


def default_of(field: Any) -> str:
    """Return a field's default as it would be written in YAML."""
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, schema.Choice):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        enabled = getattr(value, "enabled", None)
        return "see below" if enabled is None else f"`{str(enabled).lower()}`"
    if value in (None, "", ()):
        return "auto"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return (
        "`"
        + (
            ", ".join(map(str, value))
            if isinstance(value, tuple)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )
        + "`"
    )


def table(model: type[BaseModel], section: str = "") -> list[str]:
    """Return the rows of one model; what a key means is `config.key.<section><key>` of the catalogue."""
    rows = ["| key | meaning | type | default |", "|---|---|---|---|"]
    sentences = messages.catalogue("en")
    for name, field in model.model_fields.items():
        meaning = sentences[f"config.key.{section}{name}"]
        rows.append(f"| `{name}` | {meaning} | {type_of(field)} | {default_of(field)} |")
    return rows


def config_page() -> str:
    """Return docs/config.md."""
    lines = [
        "# Every key of a config",
        "",
        "Written by `python tools/write_docs.py` from the schema; do not edit. These nine are enough:",
        ", ".join(f"`{key}`" for key in MISSION) + ".",
        "",
        "Relative paths are relative to the working directory. `--set key=value` (also `--set caption.trigger=word`)",
        "replaces one value on the command line and goes through the same checks. A *step* is an optimizer step;",
        "`batch_size` is what one process handles at once.",
        "",
        *table(schema.RunConfig),
    ]
    titles = {"dataset": "datasets: one entry", "caption_rules": "caption", "text_encoder": "train_text_encoder"}
    titles |= {"previews": "preview", "validating": "validation", "layer": "lora_layers: one entry"}
    for model, section in SECTIONS.items():
        lines += ["", f"## `{titles[section]}`", "", *table(getattr(schema, model), f"{section}.")]
    for key, kind in (("adapter", "adapters"), ("optimizer", "optimizers"), ("schedule", "schedules")):
        lines += ["", f"## `{key}`", "", f"`{key}: name`, or a section: `{key}: {{name: ..., option: ...}}`.", ""]
        for name in registry.names(kind):
            module = registry.load(kind, name)
            options = ", ".join(
                f"`{option}` ({type_of(field)}; {default_of(field)})"
                for option, field in module.Config.model_fields.items()
            )
            about = (module.__doc__ or "").split("\n")[0]
            lines.append(f"- `{name}`: {about} Options: {options or 'none'}.")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Return docs/errors.md."""
    tree = (errors.__doc__ or "").strip().split("\n\n")[1]
    lines = [
        "# What an error means",
        "",
        "Written by `python tools/write_docs.py` from the message catalogue; do not edit.",
        "",
        "A mistake in the input is one sentence on standard error, and an exit code. The whole trace of any error that",
        "ended a run is in `train.log` in its output folder. Exit codes:",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | done, or already complete |",
        "| 1 | our own fault |",
        "| 2 | the config, or a base or LoRA that does not fit or cannot be read |",
        "| 3 | the data, or a damaged checkpoint |",
        "| 4 | the machine: disk, memory, network, a missing extra |",
        "| 5 | numbers that are not finite, or an export that does not equal the adapter |",
        "| 6 | the output folder is in use |",
        "| 130, 143 | stopped by Ctrl-C or a polite kill, after a save |",
        "",
        "```",
        tree,
        "```",
        "",
        "In the sentences below, `{...}` stands for a value.",
    ]
    topics: dict[str, list[str]] = {}
    for code, sentence in messages.catalogue("en").items():
        topic = code.split(".")[0]
        if not code.startswith(("config.key.", "cli.")):
            topics.setdefault(topic, []).append(f"| `{code}` | {sentence} |")
    for topic, rows in topics.items():
        lines += ["", f"## {topic}", "", "| code | sentence |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check the pages."""
    pages = {"docs/config.md": config_page(), "docs/errors.md": errors_page()}
    stale = [n for n, page in pages.items() if not (ROOT / n).exists() or (ROOT / n).read_text("utf-8") != page]
    if "--check" in arguments:
        print("stale: " + ", ".join(stale) if stale else "docs are up to date")
        return 1 if stale else 0
    for name, page in pages.items():
        (ROOT / name).write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
