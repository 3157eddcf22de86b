"""The security checks that need no web page: each runs through the public way, with what an attacker would hand in."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import socket
import stat
from pathlib import Path

import pytest
import torch

from lora_scripts import app, redaction, registry
from lora_scripts.adapters import files as adapter_files
from lora_scripts.config.load import from_mapping, load
from lora_scripts.errors import ConfigError, DataError, LoraScriptsError
from tests import tiny, tiny_text

TOKEN = "hf_" + "abcdefghij" * 3


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ready(data: Path, settings: dict) -> dict:
    tiny.tiny_pictures(data, 4)
    return settings | {"steps": 2, "epochs": 1, "name": "x"} | {"gradient_accumulation": 1}


def trained(settings: dict) -> app.Outcome:
    return app.train(from_mapping({key: value for key, value in settings.items() if key != "epochs"}))


def test_s16_nothing_is_asked_of_any_network(ready, command, monkeypatch):
    asked = []

    def connect(self, address):
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    del ready["epochs"]
    assert command("check", ready).code == 0 and command("train", ready).code == 0
    assert asked == []


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/secret.png", "..\\secret.png", "C:\\secret.png", "a/../../secret.png"]
)
def test_s18_rows_that_leave_the_folder_are_refused(ready, command, data, tmp_path, name):
    tiny.tiny_pictures(tmp_path / "outside", 1)
    (data / "metadata.csv").write_text(f"file_name,prompt\n{name},mine\n")
    del ready["epochs"]
    answer = command("check", ready)
    assert answer.code == 3 and "line 2" in answer.error


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_s19_links_out_of_the_folder_are_not_followed(ready, data, tmp_path, plan):
    tiny.tiny_pictures(tmp_path / "outside", 1)
    (data / "link.png").symlink_to(next((tmp_path / "outside").glob("*.png")))
    (data / "folder").symlink_to(tmp_path / "outside")
    del ready["epochs"]
    said = plan(ready)
    assert "Pictures found: 4" in said and said.count("link") >= 2


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "con", "x" * 300, "a\0b", "-rf"])
def test_s21_names_of_runs_cannot_leave_the_output_folder(ready, command, tmp_path, name):
    del ready["epochs"]
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    answer = command("check", ready | {"name": name})
    assert answer.code in (0, 2) and (answer.code == 2 or "/" not in name)
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before


def test_s24_no_archive_of_a_user_is_opened(root):
    imports = {}
    for path in sorted((root / "src/lora_scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {"zipfile", "tarfile"} & set(names):
                imports[path.relative_to(root / "src/lora_scripts").as_posix()] = names
    # The first is our own build tool, the second reads one member of one wheel whose hash is known.
    assert set(imports) <= {"embedded/training/data.py", "embedded/smollm2.py"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_s27_files_are_as_readable_as_the_umask_says_and_no_more(ready):
    old = os.umask(0o022)
    try:
        outcome = trained(ready)
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in outcome.folder.rglob("*")}
    assert len(modes) > 8
    assert {path.name: oct(mode) for path, mode in modes.items() if mode & 0o022} == {}
    for path in outcome.files.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl"])
@pytest.mark.parametrize("key", ["base_model", "init_lora"])
def test_s28_s29_pickles_are_refused_and_run_nothing(ready, command, tmp_path, suffix, key):
    path, canary = tmp_path / f"weights{suffix}", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Canary(canary)))
    del ready["epochs"]
    answer = command("train", ready | {key: str(path)})
    assert answer.code == 2 and "safetensors" in answer.error and not canary.exists()


def test_s29_a_pickle_under_a_safe_name_is_refused(ready, command, tmp_path):
    path, canary = tmp_path / "weights.safetensors", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Canary(canary)))
    del ready["epochs"]
    for key in ("base_model", "init_lora"):
        assert command("train", ready | {key: str(path)}).code == 2 and not canary.exists()


def test_s29_a_pickle_inside_a_base_folder_is_refused(ready, command, base_folder, tmp_path):
    base, canary = Path(shutil.copytree(base_folder, tmp_path / "base")), tmp_path / "canary"
    next((base / "unet").glob("*.safetensors")).unlink()
    (base / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    del ready["epochs"]
    answer = command("train", ready | {"base_model": str(base)})
    assert answer.code == 2 and not canary.exists()


def test_s30_a_header_that_claims_more_than_the_file_holds(tmp_path):
    path = tmp_path / "x.safetensors"
    for size in (2**63 - 1, 10**9, 8):
        path.write_bytes(size.to_bytes(8, "little") + b"{" * 100)
        with pytest.raises(LoraScriptsError):
            adapter_files.load(path)


@pytest.mark.parametrize(
    "name", ["__class__", "lora_unet___init__.lora_down.weight", "unet.__dict__.lora_A.weight", "a" * 5000]
)
def test_s31_names_of_tensors_are_matched_and_never_followed(tmp_path, name):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(2, 2)}, path)
    with pytest.raises(LoraScriptsError):
        adapter_files.load(path)


def test_s32_code_beside_a_model_is_not_run(text_base, tmp_path):
    base, canary = Path(shutil.copytree(text_base, tmp_path / "base")), tmp_path / "canary"
    (base / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Model: pass\n")
    config = json.loads((base / "config.json").read_text())
    config |= {
        "auto_map": {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model"},
        "trust_remote_code": True,
    }
    (base / "config.json").write_text(json.dumps(config))
    words = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(
        json.dumps(words | {"auto_map": {"AutoTokenizer": ["evil.Model", None]}})
    )
    made = from_mapping(tiny_text.config(tmp_path, base_model=str(base)))
    try:
        app.train(made)
    except LoraScriptsError as error:
        assert error.exit_code == 2
    assert not canary.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
    ],
)
def test_s34_chat_templates_are_sandboxed(text_base, tmp_path, template):
    base = Path(shutil.copytree(text_base, tmp_path / "base"))
    words = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(words | {"chat_template": template}))
    (base / "chat_template.jinja").write_text(template)
    with pytest.raises(LoraScriptsError) as caught:
        app.train(from_mapping(tiny_text.config(tmp_path, base_model=str(base))))
    assert caught.value.exit_code in (2, 3)


def test_s36_a_config_cannot_blow_up(tmp_path):
    path = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError):
        load(path)
    path.write_text("a: " + "[" * 20_000)
    with pytest.raises(ConfigError):
        load(path)


@pytest.mark.parametrize("value", ["-rf", "--config=other", "; true", "$(true)", "`true`"])
def test_s37_values_are_never_words_of_a_shell(ready, command, tmp_path, value):
    del ready["epochs"]
    answer = command("check", ready | {"train_data_dir": value})
    assert answer.code == 3 and value in answer.error


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", "os.system"),
        ("schedule", "lora_scripts.app"),
        ("objective", "builtins.eval"),
        ("exporters", ["os"]),
    ],
)
def test_s38_no_import_path_comes_from_a_config(ready, command, key, value):
    del ready["epochs"]
    answer = command("check", ready | {key: value})
    assert answer.code == 2 and str(value if isinstance(value, str) else value[0]) in answer.error


def test_s39_variables_of_the_environment_are_not_filled_in(ready, command, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "not-to-be-seen")
    del ready["epochs"]
    answer = command("check", ready | {"train_data_dir": "${MY_SECRET}"})
    assert answer.code == 3 and "not-to-be-seen" not in answer.out + answer.error


def test_s43_telemetry_of_libraries_is_off():
    from lora_scripts.cli import QUIET

    assert QUIET["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"token {TOKEN} here", TOKEN),
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ('{"api_key": "0123456789abcdef"}', "0123456789abcdef"),
        ("https://me:word@host/x", "me:word"),
        ("sk-" + "a1B2" * 8, "a1B2a1B2"),
        ("AKIA" + "A1B2C3D4E5F6G7H8", "AKIAA1B2"),
        (f"\x1b[31mhf_\x1b[0m{TOKEN[3:]}", TOKEN[3:]),
    ],
)
def test_s44_secrets_are_hidden(text, hidden):
    assert hidden not in redaction.hide(text) and redaction.HIDDEN in redaction.hide(text)


def test_s44_ordinary_words_stay():
    text = '{"tokens": 75, "max_tokens": 200, "path": "data/secret garden/a.png", "prompt": "a token of love"}'
    assert redaction.hide(text) == text


def test_f87_s44_a_token_is_in_no_file_of_a_run(ready, monkeypatch, data):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (data / "disc0.txt").write_text("a disc")
    outcome = trained(ready | {"name": "x", "preview": {"prompts": [f"a disc {TOKEN}"], "steps": 1}})
    kept = {path.name for path in outcome.folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()}
    # That file is what the person asked the preview for, word for word.
    assert kept <= {"prompts.txt"}
    assert redaction.HIDDEN in (outcome.folder / "run.json").read_text()


def test_s45_no_verb_takes_a_secret_on_the_command_line(capsys):
    from lora_scripts import cli

    flags = set()
    for verb in cli.verbs():
        with pytest.raises(SystemExit):
            cli._parser([verb]).parse_args([verb, "--help"])
        flags |= {word.strip("[],") for word in capsys.readouterr().out.split() if word.startswith(("--", "[--"))}
    assert len(flags) > 40
    assert not {
        flag for flag in flags if any(word in flag for word in ("key", "password", "secret")) or flag == "--token"
    }


def test_s46_exported_files_name_no_folder_of_this_machine(ready, tmp_path):
    outcome = trained(ready)
    exported = [*outcome.files.values(), *(outcome.folder / "checkpoints").rglob("*.safetensors")]
    assert len(exported) >= 3
    for path in exported:
        assert str(tmp_path).encode() not in path.read_bytes(), path


def test_s47_line_ends_in_names_do_not_forge_log_lines(ready, data, plan):
    name = "a\nERROR forged.png"
    (data / name).write_bytes(b"no picture")
    del ready["epochs"]
    with pytest.raises(DataError) as caught:
        plan(ready)
    said = str(caught.value)
    assert "forged" in said
    assert not [line for line in said.splitlines() if line.startswith("ERROR")]


def test_s50_there_is_a_way_to_report(root):
    text = (root / "SECURITY.md").read_text(encoding="utf-8")
    assert "private vulnerability report" in text and "safetensors" in text


def test_f40_a_base_that_cannot_be_reached_is_told_with_what_to_do(ready, command):
    del ready["epochs"]
    answer = command("train", ready | {"base_model": "somebody/some-base"})
    assert answer.code == 4 and "somebody/some-base" in answer.error


def test_f57_latents_that_are_not_finite_are_refused_and_not_kept(ready, monkeypatch, tmp_path):
    from diffusers import AutoencoderKL

    true_encode = AutoencoderKL.encode

    def encode(self, pixels, **more):
        made = true_encode(self, pixels, **more)
        made.latent_dist.mean[...] = float("nan")
        return made

    monkeypatch.setattr(AutoencoderKL, "encode", encode)
    with pytest.raises(DataError, match=r"not finite.*disc") as caught:
        trained(ready)
    assert caught.value.exit_code == 3
    assert not [path for path in (tmp_path / "cache").rglob("*.safetensors") if "latent" in str(path)]


def test_f59_f60_unequal_micro_batches_and_a_smaller_last_step_weigh_alike(tmp_path):
    """Ten rows of three weights and groups, steps of four: the last of an epoch holds two."""
    from tests.train.toy import build, weights

    results = []
    for size in (4, 2, 1):
        trainer, _, _ = build(tmp_path, batch_size=size, groups=3, total=3, max_norm=None)
        steps = [sum(len(batch.ids) for batch in trainer.batches(step)) for step in range(3)]
        assert sorted(steps) == [2, 4, 4]
        trainer.fit()
        results.append(weights(trainer))
    assert max((result - results[0]).abs().max().item() for result in results) < 1e-12


def test_registry_knows_every_captioner_and_optimizer_by_file_only():
    assert all(name.isidentifier() for kind in registry.KINDS for name in registry.names(kind))
