"""An imported config as YAML: each key with a comment that says where its value comes from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts import files
from lora_scripts.errors import ConfigError

# Grouped as a person would: what, with what, how, how long, what comes out.
ORDER = (
    *("base_model", "prediction_type", "clip_skip", "resolution", "datasets", "caption", "output_dir", "name", "seed"),
    *("lora_rank", "lora_alpha", "lora_dropout", "adapter", "lora_targets", "lora_layers", "init_lora"),
    *("train_text_encoder", "steps", "batch_size", "gradient_accumulation", "learning_rate", "optimizer"),
    *("schedule", "warmup", "max_grad_norm"),
)
COLUMN = 44


def yaml_of(tree: Mapping[str, Any], comments: Mapping[str, str], head: str) -> bytes:
    """Return the config as bytes; `head` is the comment on top."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    keys = [key for key in ORDER if key in tree] + [key for key in tree if key not in ORDER]
    mapping = CommentedMap((key, tree[key]) for key in keys)
    mapping.yaml_set_start_comment(head)
    for key in keys:
        if comments.get(key):
            comment = " ".join(comments[key].split())
            if isinstance(tree[key], dict | list):
                mapping.yaml_set_comment_before_after_key(key, before=comment)
            else:
                mapping.yaml_add_eol_comment(comment, key, column=COLUMN)
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096
    yaml.allow_unicode = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.BytesIO()
    yaml.dump(mapping, stream)
    return stream.getvalue()


def write(contents: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Write the files, or none of them where one would take the place of another file.

    Raises:
        ConfigError: a file with other content is there.
        MachineError: a folder cannot be written.
    """
    for path, data in contents.items():
        if path.is_dir():
            raise ConfigError("import.output_is_folder", path=path)
        if path.exists() and not overwrite and path.read_bytes() != data:
            raise ConfigError("import.exists", path=path)
    for path, data in contents.items():
        if not path.parent.is_dir():
            raise ConfigError("import.no_output_folder", path=path.parent)
        files.write_bytes(path, data)
