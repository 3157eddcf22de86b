"""Each kind of adapter in a whole run: trained, resumed, written, read back; and what is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lora_scripts import app
from lora_scripts.adapters import files
from lora_scripts.adapters.compare import compare
from lora_scripts.config.load import load
from lora_scripts.errors import BaseModelError, ConfigError, Stopped
from lora_scripts.events import Command, Stepped
from lora_scripts.preparation import prepare

FORMS = {
    "rslora": ("{name: lora, rank_stabilised: true}", "lora"),
    "pissa": ("{name: lora, start: pissa}", "lora"),
    "dora": ("dora", "dora"),
    "loha": ("loha", "loha"),
    "lokr": ("{name: lokr, factor: 4}", "lokr"),
}
FEW = ("epochs=1", "lora_targets=[.*mid_block.*(to_q|conv1)]", "lora_dropout=0", "exporters=[kohya]")


def train(path: Path, *overrides: str, **options):
    return app.train(load(path, [*FEW, *overrides]), **options)


def stop_at(step: int):
    return lambda event: Command.STOP if isinstance(event, Stepped) and event.step == step else None


@pytest.mark.parametrize("name", list(FORMS))
def test_a_stopped_run_ends_with_the_bytes_of_a_whole_one(name, config_file, tmp_path):
    setting, kind = FORMS[name]
    out = tmp_path / "out"
    whole = train(config_file, f"adapter={setting}")
    first = (out / "out.safetensors").read_bytes()
    made = files.load(out / "out.safetensors", family="sd")
    assert made.meta.kind == kind and len(made) == 4 and whole.steps == 2
    with pytest.raises(Stopped):
        train(config_file, f"adapter={setting}", restart=True, listeners=[stop_at(1)])
    with safe_open(next(out.glob("checkpoints/step-1/state.safetensors")), "pt") as state:
        buffers = [key for key in state.keys() if key.startswith("buffer/")]
    assert len(buffers) == (8 if name == "pissa" else 0)
    train(config_file, f"adapter={setting}")
    assert (out / "out.safetensors").read_bytes() == first
    if name in ("dora", "lokr"):
        # A trained one is a start for the next run; nothing is lost on the way in.
        trained = train(config_file, f"adapter={setting}", f"init_lora={out / 'out.safetensors'}", restart=True)
        assert trained.steps == 2


def test_a_start_that_another_machine_would_find_otherwise_comes_from_the_checkpoint(
    config_file, tmp_path, monkeypatch
):
    from lora_scripts.adapters.kinds import _principal

    setting = f"adapter={FORMS['pissa'][0]}"
    train(config_file, setting)
    first = (tmp_path / "out" / "out.safetensors").read_bytes()
    with pytest.raises(Stopped):
        train(config_file, setting, restart=True, listeners=[stop_at(1)])
    start = _principal.start
    monkeypatch.setattr(
        _principal, "start", lambda *given: {role: tensor * 1.00001 for role, tensor in start(*given).items()}
    )
    train(config_file, setting)
    assert (tmp_path / "out" / "out.safetensors").read_bytes() == first


def test_layers_have_ranks_and_rates_of_their_own(config_file, tmp_path):
    layers = "[{match: '.*conv1', rank: 3, alpha: 1, learning_rate: 0.5}, {match: '.*attn2.*', rank: 0}]"
    seen: list[Stepped] = []
    keep = lambda event: seen.append(event) if isinstance(event, Stepped) else None  # noqa: E731
    train(config_file, f"lora_layers={layers}", "train_text_encoder=false", listeners=[keep])
    made = files.load(tmp_path / "out" / "out.safetensors", family="sd").pairs["unet"]
    assert {path.rpartition(".")[2]: pair.rank for path, pair in made.items()} == {"conv1": 3, "to_q": 2}
    rates = seen[0].rates
    assert rates.keys() == {"unet", "unet/1"} and rates["unet/1"] == pytest.approx(50 * rates["unet"])
    with pytest.raises(Stopped):
        train(config_file, f"lora_layers={layers}", restart=True, listeners=[stop_at(1)])
    train(config_file, f"lora_layers={layers}")
    compare(files.load(tmp_path / "out" / "out.safetensors", family="sd"), _adapter(made))


def _adapter(pairs):
    from lora_scripts.adapters.adapter import Adapter, AdapterMeta

    return Adapter({"unet": pairs}, AdapterMeta("sd", "x"))


def test_a_float64_base_has_float64_pairs(config_file, tmp_path):
    with pytest.raises(Stopped):
        train(config_file, "base_precision=float64", "adapter=dora", listeners=[stop_at(1)])
    with safe_open(tmp_path / "out" / "checkpoints" / "step-1" / "state.safetensors", "pt") as state:
        weights = [key for key in state.keys() if key.startswith("weight/")]
        assert len(weights) == 12 and {state.get_tensor(key).dtype for key in weights} == {torch.float64}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["adapter=loha", "lora_dropout=0.1"], "adapter.rank_dropout"),
        (["lora_layers=[{match: '.*to_z', rank: 2}]"], "to_z"),
        (["lora_layers=[{match: '.*(', rank: 2}]"], "not a regular expression"),
        (["lora_layers=[{match: '.*', rank: 0}]"], "leave out all 4 layers"),
        (["adapter={name: lora, start: pissa}", "init_lora=lora.safetensors"], "one start"),
        (["adapter=lohas"], "loha"),
        (["adapter={name: lokr, factor: half}"], "factor"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(overrides, words, config_file, monkeypatch):
    from lora_scripts.families.sd import plugin

    monkeypatch.setattr(plugin, "load", lambda *_: pytest.fail("the base was loaded"))
    with pytest.raises(ConfigError, match=words) as caught:
        train(config_file, *overrides)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", list(FORMS))
def test_packed_weights_are_refused_to_kinds_that_read_their_shape(name, config_file, monkeypatch):
    from lora_scripts import adapting

    config = load(config_file, [*FEW, f"adapter={FORMS[name][0]}", "base_precision=nf4"]).model_copy(
        update={"lora_targets": "auto"}
    )
    assert adapting.check(config, None, None, {"unet": ()}) == []
    if name in ("loha", "lokr"):
        with pytest.raises(ConfigError, match="packed"):
            adapting.check(config, None, None, {"language_model": ()})
    else:
        assert adapting.check(config, None, None, {"language_model": ()}) == []


def test_a_lora_of_another_kind_is_no_start(config_file, tmp_path):
    train(config_file, "adapter=loha")
    kept = (tmp_path / "out" / "out.safetensors").rename(tmp_path / "kept.safetensors")
    with pytest.raises(BaseModelError, match="set adapter: loha"):
        train(config_file, f"init_lora={kept}", restart=True)


def test_the_plan_names_the_kind_and_the_layers(config_file):
    from lora_scripts.cli._plan_table import lines

    layers = "[{match: '.*', rank: 3, learning_rate: 0.5}, {match: '.*conv1', rank: 4}]"
    text = "\n".join(
        lines(prepare(load(config_file, [*FEW, "adapter={name: lokr, factor: 4}", f"lora_layers={layers}"])))
    )
    assert "lokr (factor 4)" in text and "rank 3, alpha 3, rate 0.5" in text and "Section 2" in text
