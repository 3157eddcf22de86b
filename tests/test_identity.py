"""A run is resumed by the same config only; one that an older version wrote is still the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lora_scripts import identity
from lora_scripts.config.load import from_mapping
from lora_scripts.errors import ConfigError

CONFIG = {
    "datasets": [{"path": "a", "repeats": 2}],
    "base_model": "embedded/pictures",
    "output_dir": "out",
    "caption": {"trigger": "sks"},
}


def record(**changes: Any) -> dict[str, Any]:
    facts = identity.config_facts(from_mapping({**CONFIG, **changes}))
    return {"config": facts, "data": {}, "base": {"hash": "x"}}


def check(found: dict[str, Any], **changes: Any) -> None:
    identity.check_same(found, from_mapping({**CONFIG, **changes}), [], "x")


def test_the_same_config_is_the_same():
    check(record())


def test_a_record_without_newer_keys_is_the_same_where_they_have_their_defaults():
    older = record()
    for key in ("steps", "adapter", "lora_layers", "mask", "prior"):
        del older["config"][key]
    for key in ("keep_tags", "suffix"):
        del older["config"]["caption"][key]
    for key in ("regularisation", "visits"):
        del older["config"]["datasets"][0][key]
    untouched = copy.deepcopy(older)
    check(older)
    assert older == untouched
    with pytest.raises(ConfigError) as caught:
        check(older, adapter="dora")
    assert caught.value.problems[0].params["key"] == "adapter.name" and "dora" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("lora_rank", 16), ("seed", 1), ("caption", {"trigger": "other"}), ("mask", "alpha")]
)
def test_a_changed_key_is_named(key: str, value: Any):
    with pytest.raises(ConfigError) as caught:
        check(record(), **{key: value})
    assert caught.value.problems[0].params["key"].startswith(key)


def test_a_key_that_is_gone_does_not_hide_a_change():
    older = record()
    older["config"]["a key of old"] = 1
    with pytest.raises(ConfigError):
        check(older)
