"""`lora-scripts lora` as a person types it: what is printed, what is refused, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import cli
from lora_scripts.cli import lora as verb
from lora_scripts.lora_tools import writing
from tests.adapters import language
from tests.adapters.networks import networks
from tests.lora_tools import making
from tests.lora_tools.test_merge import lycoris
from tests.test_exporting import trained


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with LoRAs of all sorts."""
    folder = tmp_path_factory.mktemp("loras")
    live = networks()
    pairs = making.random_pairs(live["unet"], live["text_encoder"])
    making.kohya(folder / "a.safetensors", pairs)
    making.kohya(folder / "b.safetensors", making.random_pairs(live["unet"], rank=2, seed=3))
    tensors = load_file(folder / "a.safetensors")
    for value in ("nan", "inf"):
        broken = {name: tensor.clone() for name, tensor in tensors.items()}
        next(t for name, t in broken.items() if name.endswith("lora_up.weight"))[0] = float(value)
        save_file(broken, folder / f"{value}.safetensors")
    save_file({"layer.weight": torch.ones(2, 2)}, folder / "base.safetensors")
    (folder / "text.safetensors").write_text("not a safetensors file")
    (folder / "old.ckpt").write_bytes(b"PK\x03\x04 and more")
    lycoris(folder / "loha.safetensors", "loha")
    lycoris(folder / "dora.safetensors", "dora")
    trained(folder / "words", language.save_base(folder / "language"))
    return folder


def call(capsys, folder: Path, line: str) -> tuple[int, str, str]:
    """Run a command line in which @ stands for the folder."""
    code = cli.main(["lora", *(word.replace("@", f"{folder}/") for word in line.split())])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_verb_knows_what_there_is():
    assert set(verb.TOOLS) == {"info", "verify", "merge", "resize", "extract", "convert", "check-compat"}
    assert verb.LAYOUTS == writing.LAYOUTS and verb.DTYPES == writing.DTYPES


@pytest.mark.parametrize(("code", "words"), [("en", "Programs that load it"), ("zh_CN", "能加载它的程序")])
def test_info_in_both_languages(made, capsys, monkeypatch, code, words):
    monkeypatch.setenv("LORA_SCRIPTS_LANG", code)
    status, out, err = call(capsys, made, "info @a.safetensors @words")
    assert status == 0 and err == "" and words in out
    for fact in ("tiny-base", "in tiny style", "cat (4), red hat (2)", "lion", "64,96", "mid_block", "model.layers.1"):
        assert fact in out, fact


def test_info_as_json(made, capsys):
    status, out, _ = call(capsys, made, "info --json @a.safetensors")
    assert status == 0 and json.loads(out)["components"]["unet"]["modules"] == 52
    status, out, _ = call(capsys, made, "info --json @a.safetensors @words")
    assert [facts["layout"] for facts in json.loads(out)] == ["kohya", "peft"]


def test_the_tables_columns_stand_below_each_other():
    from rich.cells import cell_len

    from lora_scripts.cli._lora_facts import table

    rows = list(table([["块", "norm", "x"], ["unet up", "1", "y"]]))
    assert [cell_len(row) for row in rows] == [2 + 7 + 2 + 4 + 2 + 1] * 2


def test_verify_goes_on_and_tells_the_worst(made, capsys):
    status, out, _ = call(capsys, made, "verify @nan.safetensors @a.safetensors")
    assert status == 2 and "WRONG: " in out and "not finite" in out and out.count("  ok: ") == 5
    assert call(capsys, made, "verify @a.safetensors @words")[0] == 0


def test_merge_resize_convert_and_check(made, tmp_path, capsys):
    out = tmp_path / "sum.safetensors"
    status, said, err = call(capsys, made, f"merge @a.safetensors:0.6 @b.safetensors:0.4 --output {out}")
    assert status == 0 and err == "" and "2 LoRAs become one, exactly: 62 modules, rank 4-6" in said
    small = tmp_path / "small.safetensors"
    status, said, _ = call(capsys, made, f"resize {out} --energy 0.9 --output {small}")
    assert status == 0 and "of the energy is kept" in said and small.stat().st_size < out.stat().st_size
    status, said, _ = call(capsys, made, f"convert {small} --to diffusers")
    assert status == 0 and (tmp_path / "small-diffusers" / "pytorch_lora_weights.safetensors").is_file()
    status, said, _ = call(capsys, made, f"check-compat @a.safetensors {out}")
    assert status == 0 and "pull in the same direction" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "small-diffusers",
        "small.safetensors",
        "sum.safetensors",
    ]


def test_overwrite_is_asked_for_and_never_of_an_input(made, tmp_path, capsys):
    out = tmp_path / "sum.safetensors"
    out.write_text("mine")
    merge = "merge @a.safetensors @b.safetensors --output"
    status, _, err = call(capsys, made, f"{merge} {out}")
    assert status == 2 and "--overwrite" in err and out.read_text() == "mine"
    assert call(capsys, made, f"{merge} {out} --overwrite")[0] == 0 and out.stat().st_size > 1000
    before = (made / "a.safetensors").read_bytes()
    for place in ("@a.safetensors", "@./a.safetensors", "@words/../a.safetensors"):
        status, _, err = call(capsys, made, f"{merge} {place} --overwrite")
        assert status == 2 and "what is read" in err, place
    assert (made / "a.safetensors").read_bytes() == before


def test_a_folder_that_is_replaced_keeps_nothing_of_the_old_lora(made, tmp_path, capsys):
    from lora_scripts.adapters import files

    place = tmp_path / "style"
    assert call(capsys, made, f"convert @a.safetensors --to peft --output {place}")[0] == 0
    assert set(files.load(place).pairs) == {"unet", "text_encoder"}
    assert call(capsys, made, f"convert @b.safetensors --to peft --output {place}")[0] == 2
    assert call(capsys, made, f"convert @b.safetensors --to peft --output {place} --overwrite")[0] == 0
    assert set(files.load(place).pairs) == {"unet"}


# The line, and words of the one sentence that answers it. {out} is a place that is free.
REFUSED = [
    ("info", "No LoRA is named"),
    ("verify", "No LoRA is named"),
    ("merge --output {out}", "No LoRA is named"),
    ("check-compat", "No LoRA is named"),
    ("info @absent.safetensors", "absent.safetensors does not exist"),
    ("info @base.safetensors", "holds no LoRA"),
    ("info @text.safetensors", "not a safetensors file"),
    ("info @old.ckpt", "is a pickle"),
    ("merge @a.safetensors --output {out}", "merge takes two or more"),
    ("merge @a.safetensors @words --output {out}", "cannot become one LoRA"),
    ("merge @a.safetensors @nan.safetensors --output {out}", "not finite"),
    ("merge @a.safetensors @inf.safetensors --output {out}", "not finite"),
    ("merge @a.safetensors:nan @b.safetensors --output {out}", "is not understood"),
    ("merge @a.safetensors:inf @b.safetensors --output {out}", "is not understood"),
    ("merge @a.safetensors:0 @b.safetensors --output {out}", "is not understood"),
    ("merge @a.safetensors:much @b.safetensors --output {out}", "is not understood"),
    ("merge @absent.safetensors:0.5 @b.safetensors --output {out}", "absent.safetensors:0.5 does not exist"),
    ("merge @a.safetensors @loha.safetensors --output {out}", "say --rank R"),
    ("merge @a.safetensors @dora.safetensors --rank 4 --output {out}", "depend on the base's weights"),
    ("merge @a.safetensors @b.safetensors --rank 2 --exact --output {out}", "exclude each other"),
    ("merge @a.safetensors @b.safetensors --rank 0 --output {out}", "not a whole number from 1"),
    ("merge @a.safetensors @b.safetensors --rank 2.5 --output {out}", "not a whole number from 1"),
    ("merge @a.safetensors @b.safetensors --output @out", "does not end in .safetensors"),
    ("merge @a.safetensors @b.safetensors --to peft --output {out}", "is a folder; name a folder"),
    ("merge @a.safetensors @b.safetensors --base @language --output {out}", "of another family"),
    ("merge @a.safetensors @b.safetensors --base @absent --output {out}", "absent does not exist"),
    ("resize @a.safetensors --rank 5 --output {out}", "has rank 4, so rank 5 would add nothing"),
    ("resize @a.safetensors --output {out}", "How small is not said"),
    ("resize @a.safetensors --energy 1.5 --output {out}", "above 0, at most 1"),
    ("resize @a.safetensors --energy nan --output {out}", "above 0, at most 1"),
    ("resize @a.safetensors --ratio 1 --output {out}", "above 1, at most"),
    ("resize @a.safetensors @b.safetensors --rank 2 --output {out}", "this tool takes one"),
    ("resize @dora.safetensors --rank 1 --output {out}", "depend on the base's weights"),
    ("resize @nan.safetensors --rank 1 --output {out}", "not finite"),
    ("extract @absent @language --rank 2 --output {out}", "absent does not exist"),
    ("extract @language @language --output {out}", "How large the LoRA may be is not said"),
    ("extract @language @language --rank 2 --output @new", "do not differ"),
    ("extract @a.safetensors @language --rank 2 --output {out}", "is a LoRA, not a base"),
    ("convert @words --to kohya", "has no place for the family"),
    ("convert @loha.safetensors --to diffusers", "has no place for"),
    ("convert @nan.safetensors --to peft", "not finite"),
    ("convert @a.safetensors --to kohya --output @b.safetensors", "--overwrite"),
    ("convert @a.safetensors --to kohya --output @words.safetensors/x.safetensors", ""),
    ("check-compat @a.safetensors @absent.safetensors", "does not exist"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED)
def test_bad_input_is_one_sentence(made, tmp_path, capsys, line, words):
    if not words:
        (made / "words.safetensors").write_text("a file where a folder should be")
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    status, _, err = call(capsys, made, line.format(out=tmp_path / "out.safetensors"))
    assert status == (2 if words else 4) and words in err
    assert err.count("\n") == 1 and "Traceback" not in err and "fault of lora-scripts" not in err
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["lora"], ["lora", "nothing"], ["lora", "convert", "x", "--to", "onnx"]])
def test_argparse_answers_the_rest(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err


def test_every_tool_has_help_in_both_languages(capsys, monkeypatch):
    for code in ("en", "zh_CN"):
        monkeypatch.setenv("LORA_SCRIPTS_LANG", code)
        for tool in verb.TOOLS:
            with pytest.raises(SystemExit) as caught:
                cli.main(["lora", tool, "--help"])
            assert caught.value.code == 0 and "usage" in capsys.readouterr().out
