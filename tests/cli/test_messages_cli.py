"""classify, draft and sample on a tiny language model: files in, files out, one sentence where something is wrong."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_scripts import app
from lora_scripts.cli import main
from lora_scripts.config.load import from_mapping
from tests import tiny_text

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained PEFT folder; its base lies beside it."""
    folder = tmp_path_factory.mktemp("trained")
    app.train(from_mapping(tiny_text.config(folder, learning_rate=3e-2, epochs=6)))
    return folder / "out"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a verb in this process, in the test's own folder; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    return tiny_text.write_rows(path, rows)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS: list[dict[str, Any]] = [
    {"id": "7", "message": "my card was charged twice", "label": "billing", "customer": "c1"},
    {"message": "包裹还没到", "lang": "zh"},
    {"message": "nobody rang and the box is gone", "label": "delivery", "when": {"year": 2024}},
    {"id": "9", "message": "two payments, one order", "label": "delivery"},
]


def test_classify_keeps_order_and_fields_and_adds_its_own(run: Run, adapter: Path, tmp_path: Path):
    write(tmp_path / "in.jsonl", ROWS)
    code, out, err = run("classify", "--adapter", adapter, "--input", "in.jsonl", "--output", "sorted.jsonl")
    assert code == 0 and err == ""
    found = read(tmp_path / "sorted.jsonl")
    assert [row["message"] for row in found] == [row["message"] for row in ROWS]
    for row, given in zip(found, ROWS, strict=True):
        own = {"label", "confidence", "abstained", "adapter_sha256"} | ({"expected"} if "label" in given else set())
        assert row.keys() == given.keys() | own
        assert {key: row[key] for key in given if key != "label"} == {k: v for k, v in given.items() if k != "label"}
        assert row.get("expected") == given.get("label")
        assert row["label"] in ("billing", "delivery") and 0.5 <= row["confidence"] <= 1 and row["abstained"] is False
    right = sum(row["expected"] == row["label"] for row in found if "expected" in row)
    assert f"Of 3 rows with a known label, {right} are right: {right / 3:.3f}" in out
    # The table: a row for each label, all known rows in it.
    table = [line.split() for line in out.splitlines() if line.startswith(("billing ", "delivery "))]
    assert sum(int(cell) for line in table for cell in line[1:] if cell != ".") == 3
    assert "4 rows classified" in out and "sorted.jsonl" in out


def test_rows_without_a_label_are_not_compared(run: Run, adapter: Path, tmp_path: Path):
    write(tmp_path / "in.jsonl", [{"message": "x"}])
    code, out, _ = run("classify", "--adapter", adapter, "--input", "in.jsonl", "--output", "sorted.jsonl")
    assert code == 0 and "known label" not in out and "expected" not in read(tmp_path / "sorted.jsonl")[0]


def test_draft_writes_under_the_given_label_or_the_predicted_one(run: Run, adapter: Path, tmp_path: Path):
    write(tmp_path / "in.jsonl", ROWS)
    assert run("draft", "--adapter", adapter, "--input", "in.jsonl", "--output", "drafts.jsonl")[0] == 0
    found = read(tmp_path / "drafts.jsonl")
    assert [row["message"] for row in found] == [row["message"] for row in ROWS]
    assert [row["id"] for row in found] == ["7", "row-000002", "row-000003", "9"]
    for row, given in zip(found, ROWS, strict=True):
        predicted = set() if "label" in given else {"label", "confidence", "abstained"}
        assert row.keys() == given.keys() | {"id", "reply", "adapter_sha256"} | predicted
        assert row["label"] == given.get("label", row["label"]) and isinstance(row["reply"], str)
    # What classify wrote is what draft reads.
    assert run("classify", "--adapter", adapter, "--input", "in.jsonl", "--output", "sorted.jsonl")[0] == 0
    assert run("draft", "--adapter", adapter, "--input", "sorted.jsonl", "--output", "again.jsonl")[0] == 0
    again = read(tmp_path / "again.jsonl")
    assert again[1]["label"] == found[1]["label"] and again[1]["reply"] == found[1]["reply"]


def test_several_adapters_by_the_field_of_a_row(run: Run, adapter: Path, tmp_path: Path):
    other = shutil.copytree(adapter, tmp_path / "other")
    task = json.loads((other / "task.json").read_text())
    (other / "task.json").write_text(json.dumps(task | {"abstain_below": 1.1}))
    rows = [{"message": "x", "adapter": name} for name in ("de", "zh", "de")]
    write(tmp_path / "in.jsonl", rows)
    both = ["--adapter", f"de={adapter}", "--adapter", f"zh={other}"]
    assert run("classify", *both, "--input", "in.jsonl", "--output", "sorted.jsonl")[0] == 0
    assert [row["abstained"] for row in read(tmp_path / "sorted.jsonl")] == [False, True, False]
    assert run("draft", *both, "--input", "in.jsonl", "--output", "drafts.jsonl")[0] == 0
    assert [row["adapter"] for row in read(tmp_path / "drafts.jsonl")] == ["de", "zh", "de"]


def test_labels_for_an_adapter_without_a_task_file(run: Run, adapter: Path, tmp_path: Path):
    bare = shutil.copytree(adapter, tmp_path / "bare")
    (bare / "task.json").unlink()
    write(tmp_path / "in.jsonl", ROWS)
    words = ["classify", "--input", "in.jsonl", "--output"]
    assert run(*words, "one.jsonl", "--adapter", adapter)[0] == 0
    assert run(*words, "two.jsonl", "--adapter", bare, "--labels", "delivery, billing")[0] == 0
    one, two = read(tmp_path / "one.jsonl"), read(tmp_path / "two.jsonl")
    assert [row["label"] for row in one] == [row["label"] for row in two]


# What is refused


def lines(*texts: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "in.jsonl").write_text("".join(text + "\n" for text in texts)) and None


def nothing(folder: Path) -> None:
    """The input is fine."""


GOOD = '{"message": "fine"}'
REFUSED: list[tuple[str, Callable[[Path], None], Sequence[str], int, str]] = [
    ("no message", lines(*[GOOD] * 16, '{"text": "x"}'), (), 3, "in.jsonl:17"),
    ("broken line", lines(*[GOOD] * 16, '{"message": x}'), (), 3, "in.jsonl:17"),
    ("unknown label", lines('{"message": "x", "label": "returns"}'), (), 3, "returns"),
    ("empty", lines(""), (), 3, "in.jsonl"),
    ("nothing at all", lambda folder: (folder / "in.jsonl").write_bytes(b"") and None, (), 3, "in.jsonl"),
    ("no input", nothing, ("--input", "nobody.jsonl"), 3, "nobody.jsonl"),
    ("input of another kind", nothing, ("--input", "in.docx"), 3, "in.docx"),
    ("bytes", lambda folder: (folder / "in.jsonl").write_bytes(b'{"message": "\xe9"}\n') and None, (), 3, "UTF-8"),
    ("output is the input", nothing, ("--output", "./in.jsonl"), 2, "in.jsonl"),
    ("output is a folder", nothing, ("--output", "."), 2, "--output"),
    ("no folder for the output", nothing, ("--output", "nowhere/out.jsonl"), 2, "nowhere"),
    ("no adapter", nothing, ("--adapter", "nobody"), 2, "--adapter"),
    ("other labels", nothing, ("--labels", "a,b"), 2, "a, b"),
    ("no base", nothing, ("--base", "nobody.safetensors"), 2, "nobody.safetensors"),
    ("a base of pictures", nothing, ("--base", "embedded/pictures"), 2, "ForCausalLM"),
]


@pytest.mark.parametrize("verb", ["classify", "draft"])
@pytest.mark.parametrize(
    ("harm", "words", "expected", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(run: Run, adapter: Path, tmp_path: Path, verb: str, harm, words, expected: int, said: str):
    lines(GOOD)(tmp_path)
    harm(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    given = ["--adapter", adapter, "--input", "in.jsonl", "--output", "out.jsonl", *words]
    code, out, err = run(verb, *given)
    assert code == expected and said in err, (code, err)
    assert len(err.strip().splitlines()) == 1 and not out.strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_table_is_whole():
    assert len(REFUSED) == 15


@pytest.mark.parametrize("verb", ["classify", "draft"])
def test_a_row_for_an_adapter_that_is_not_given(run: Run, adapter: Path, tmp_path: Path, verb: str):
    lines('{"message": "x", "adapter": "en"}')(tmp_path)
    code, _, err = run(verb, "--adapter", f"de={adapter}", "--input", "in.jsonl", "--output", "out.jsonl")
    assert code == 3 and '"en"' in err and "de" in err and not (tmp_path / "out.jsonl").exists()


def test_an_adapter_without_labels(run: Run, adapter: Path, tmp_path: Path):
    bare = shutil.copytree(adapter, tmp_path / "bare")
    (bare / "task.json").unlink()
    lines(GOOD)(tmp_path)
    for verb in ("classify", "draft"):
        code, _, err = run(verb, "--adapter", bare, "--input", "in.jsonl", "--output", "out.jsonl")
        assert code == 2 and "--labels" in err and not (tmp_path / "out.jsonl").exists()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_an_interrupted_run_leaves_no_half_file(run: Run, adapter: Path, tmp_path: Path):
    """Control-C in the middle of many rows: the old output stays, nothing lies beside it."""
    write(tmp_path / "in.jsonl", [{"message": f"{'word ' * 30}{n}"} for n in range(5_000)])
    (tmp_path / "out.jsonl").write_text("old\n")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    try:
        code, _, err = run("classify", "--adapter", adapter, "--input", "in.jsonl", "--output", "out.jsonl")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert code == 130, err
    assert (tmp_path / "out.jsonl").read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


# Talking


def test_sample_prints_the_base_and_the_lora(run: Run, adapter: Path):
    prompts = ["--prompt", "where is my parcel", "--prompt", "你好"]
    code, out, err = run("sample", "--lora", adapter, *prompts, "--new-tokens", "6")
    assert code == 0, err
    said = out.splitlines()
    assert [line for line in said if line.startswith("> ")] == ["> where is my parcel", "> 你好"]
    answers = [line.strip().partition(": ") for line in said if line.startswith("  ")]
    assert len(answers) == 4 and len({name for name, _, _ in answers}) == 2
    # The base alone, asked by its name, says the same again.
    code, out, err = run("sample", "--base", adapter.parent / "base", *prompts, "--new-tokens", "6")
    assert code == 0, err
    alone = [line.strip().partition(": ") for line in out.splitlines() if line.startswith("  ")]
    assert alone == answers[::2]
    # At no strength the adapter is the base.
    code, out, err = run("sample", "--lora", f"{adapter}:0", *prompts, "--new-tokens", "6")
    weak = [line.strip().partition(": ")[2] for line in out.splitlines() if line.startswith("  ")]
    assert weak == [text for _, _, text in alone for _ in range(2)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "5"], "--steps"),
        (["--guidance", "2"], "--guidance"),
        (["--size", "64x64"], "--size"),
        (["--out", "samples"], "--out"),
        (["--seed", "3"], "--seed"),
        (["--count", "2"], "--count"),
    ],
)
def test_options_of_pictures_say_nothing_to_a_language_model(run: Run, adapter: Path, words, said: str):
    code, _, err = run("sample", "--lora", adapter, "--prompt", "x", *words)
    assert code == 2 and said in err


def test_the_length_of_an_answer_says_nothing_to_a_picture(run: Run):
    code, _, err = run("sample", "--base", "embedded/pictures", "--prompt", "x", "--new-tokens", "5")
    assert code == 2 and "--new-tokens" in err


def test_sample_needs_words_and_one_adapter(run: Run, adapter: Path):
    assert run("sample", "--lora", adapter)[0] == 2
    code, _, err = run("sample", "--lora", adapter, "--lora", adapter, "--prompt", "x")
    assert code == 2 and "2" in err
