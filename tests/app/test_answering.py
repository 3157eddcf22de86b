"""Messages in, labels and replies out: one base, adapters chosen row by row, confidence as it was calibrated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import answering
from lora_scripts.errors import BaseModelError, ConfigError, DataError, MachineError
from tests import tiny_text
from tests.app.text_runs import train, write

MESSAGES = [f"{text} {n}" for n, (text, _, _) in enumerate(tiny_text.MESSAGES)] + ["包裹还没到", "x" * 200]


@pytest.fixture(scope="module")
def contrary(text_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that learned other labels."""
    folder = tmp_path_factory.mktemp("contrary")
    rows = [row | {"label": f"not {row['label']}"} for row in tiny_text.task_rows()]
    train(folder, text_base, train_data_dir=write(folder, "rows.jsonl", rows), learning_rate=3e-2, epochs=6, seed=3)
    return folder / "out"


def silent(done: int, total: int) -> None:
    """Nobody listens."""


def opened(*values: str, labels: tuple[str, ...] = (), base: str | None = None) -> answering.Speaker:
    return answering.open_speaker(answering.parse_adapters(values, labels), base)


def classified(speaker: answering.Speaker, rows: list[dict[str, Any]]) -> list[tuple[str, float, bool]]:
    return answering.classify(speaker, rows, silent)


def bare(folder: Path, adapter: Path) -> Path:
    """A copy without task.json."""
    copy = shutil.copytree(adapter, folder / "bare")
    (copy / "task.json").unlink()
    return copy


# Answers


def test_rows_keep_their_order_whatever_their_length(text_adapter: Path):
    speaker = opened(str(text_adapter))
    rows = [{"message": message} for message in MESSAGES]
    found = classified(speaker, rows)
    alone = [classified(speaker, [row])[0] for row in rows]
    assert [row[0] for row in found] == [row[0] for row in alone]
    assert [row[1] for row in found] == pytest.approx([row[1] for row in alone], abs=1e-4)
    assert classified(speaker, rows[::-1]) == found[::-1]
    assert {label for label, _, _ in found} <= {"billing", "delivery"}
    assert all(0.5 <= confidence <= 1 and abstained is False for _, confidence, abstained in found)


def test_replies_keep_their_order_and_depend_on_the_label(text_adapter: Path):
    speaker = opened(str(text_adapter))
    rows = [{"message": message} for message in MESSAGES]
    replies = answering.draft(speaker, rows, ["billing"] * len(rows), silent)
    assert answering.draft(speaker, rows[::-1], ["billing"] * len(rows), silent) == replies[::-1]
    assert answering.draft(speaker, rows, ["delivery"] * len(rows), silent) != replies


def test_each_row_gets_the_adapter_it_names(text_adapter: Path, contrary: Path):
    both = opened(f"one={text_adapter}", f"two={contrary}")
    one, two = opened(str(text_adapter)), opened(str(contrary))
    names = ["one", "two", "two", "one", "two"] * 2
    rows = [{"message": message, "adapter": name} for message, name in zip(MESSAGES, names, strict=True)]
    found = classified(both, rows)
    for row, said in zip(rows, found, strict=True):
        (wanted,) = classified({"one": one, "two": two}[row["adapter"]], [row])
        assert said[0] == wanted[0] and said[1] == pytest.approx(wanted[1], abs=1e-4)
    assert {said[0].startswith("not ") for said, name in zip(found, names, strict=True) if name == "two"} == {True}
    replies = answering.draft(both, rows, ["billing"] * 10, silent)
    for name, speaker in (("one", one), ("two", two)):
        places = [i for i, row in enumerate(rows) if row["adapter"] == name]
        wanted = answering.draft(speaker, [rows[i] for i in places], ["billing"] * len(places), silent)
        assert [replies[i] for i in places] == wanted


def test_an_adapter_taken_off_leaves_no_trace(text_adapter: Path):
    speaker = opened(str(text_adapter))
    weights = speaker.family.model.state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with pytest.raises(KeyboardInterrupt), speaker.wearing(""):
        raise KeyboardInterrupt
    assert all(torch.equal(weights[name], before[name]) for name in before)
    plain = answering.answer(speaker, ["hello"], None, 1.0, 8)
    assert answering.answer(speaker, ["hello"], "", 0.0, 8) == plain
    assert answering.answer(speaker, ["hello"], "", 1.0, 8) != plain
    assert answering.answer(speaker, ["hello"], None, 1.0, 8) == plain


# Confidence


def test_confidence_is_that_of_the_calibration(text_base: Path, tmp_path: Path):
    held = write(tmp_path, "held.jsonl", tiny_text.task_rows(16, start=40))
    values = {"validation": {"paths": [held], "answers": 2}, "learning_rate": 3e-2, "epochs": 6}
    outcome = train(tmp_path, text_base, **values)
    out = tmp_path / "out"
    task = json.loads((out / "task.json").read_text())
    assert task["held_out"]["rows"] == 16 and task["temperature"] != 1.0
    assert task["held_out"]["calibration_error"] <= task["held_out"]["calibration_error_before"]
    rows = [{"message": example.row.message, "label": example.row.label} for example in outcome.prepared.held]
    rows = [row for row in rows if row["label"]]
    found = classified(opened(str(out)), rows)
    told = answering.compare(rows, found)
    # What the run measured is what a person gets.
    assert told.known == 16 and told.right / 16 == pytest.approx(task["held_out"]["label_accuracy"])
    assert [said[2] for said in found] == [said[1] < task["abstain_below"] for said in found]
    raw = json.loads((out / "task.json").read_text()) | {"temperature": 1.0, "abstain_below": 1.1}
    (out / "task.json").write_text(json.dumps(raw))
    other = classified(opened(str(out)), rows)
    assert [said[0] for said in other] == [said[0] for said in found]
    assert [said[1] for said in other] != [said[1] for said in found] and all(said[2] for said in other)


def test_counting_what_was_right():
    rows = [{"label": "a"}, {"label": "b"}, {"label": "b"}, {}]
    told = answering.compare(rows, [("a", 0.9, False), ("a", 0.5, True), ("b", 0.9, False), ("c", 0.9, True)])
    assert (told.rows, told.abstained, told.known, told.right) == (4, 2, 3, 2)
    assert told.labels == ("a", "b") and told.confusion == ((1, 0), (1, 1))


# Adapters and labels


def test_labels_can_be_given_for_an_adapter_without_a_task_file(text_adapter: Path, tmp_path: Path):
    lone = bare(tmp_path, text_adapter)
    given = ("delivery", "billing", "billing")
    speaker = opened(str(lone), labels=given)
    assert speaker.adapters[""].task == answering.Task(("billing", "delivery"))
    rows = [{"message": message} for message in MESSAGES]
    assert classified(speaker, rows) == classified(opened(str(text_adapter)), rows)


def test_given_labels_must_be_the_trained_ones(text_adapter: Path):
    opened(str(text_adapter), labels=("delivery", "billing"))
    with pytest.raises(ConfigError) as caught:
        answering.parse_adapters([str(text_adapter)], ("billing", "returns"))
    assert caught.value.code == "llm.other_labels" and "returns" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"labels": ["a", "b"]}', '{"schema": 2, "labels": ["a"], "temperature": 1, "abstain_below": 0}',
     '{"schema": 1, "labels": ["a"], "temperature": 0, "abstain_below": 0}',
     '{"schema": 1, "labels": ["a"], "temperature": NaN, "abstain_below": 0}'],
    ids=["cut", "a list", "half", "newer", "cold", "no number"],
)  # fmt: skip
def test_a_broken_task_file_is_refused(text_adapter: Path, tmp_path: Path, text: str):
    lone = bare(tmp_path, text_adapter)
    (lone / "task.json").write_text(text)
    with pytest.raises(BaseModelError) as caught:
        answering.parse_adapters([str(lone)])
    assert caught.value.code == "llm.bad_task" and str(lone / "task.json") in str(caught.value)


def test_adapters_need_names_of_their_own(text_adapter: Path, contrary: Path):
    for values in ([str(text_adapter), str(contrary)], [f"a={text_adapter}", f"a={contrary}"], ["a=", f"={contrary}"]):
        with pytest.raises((ConfigError, BaseModelError)) as caught:
            answering.parse_adapters(values)
        assert caught.value.exit_code == 2
    with pytest.raises(BaseModelError, match="nobody"):
        answering.parse_adapters(["a=nobody"])


def test_an_adapter_on_another_base_is_refused(text_base: Path, text_adapter: Path, tmp_path: Path):
    stranger = tiny_text.write_base(tmp_path / "stranger", seed=5)
    with pytest.raises(BaseModelError) as caught:
        opened(str(text_adapter), base=str(stranger))
    assert caught.value.code == "llm.other_base" and str(stranger) in str(caught.value)
    train(tmp_path, stranger, epochs=1)
    with pytest.raises(BaseModelError) as caught:
        opened(f"one={text_adapter}", f"two={tmp_path / 'out'}")
    assert caught.value.code == "llm.bases_differ" and str(text_base) in str(caught.value)
    with pytest.raises(BaseModelError) as caught:
        opened(f"one={text_adapter}", f"two={tmp_path / 'out'}", base=str(text_base))
    assert caught.value.code == "llm.other_base"
    # A copy of the right base at another place is the right base.
    copy = shutil.copytree(text_base, tmp_path / "copy")
    assert opened(str(text_adapter), base=str(copy)).base.path == copy


def test_a_base_that_moved_is_told_and_can_be_named(text_base: Path, text_adapter: Path, tmp_path: Path):
    moved = shutil.copytree(text_adapter, tmp_path / "moved")
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(BaseModelError) as caught:
        opened(str(moved))
    assert "/nowhere/base" in str(caught.value)
    assert opened(str(moved), base=str(text_base)).base.path == text_base


def test_a_picture_base_is_refused(text_adapter: Path):
    with pytest.raises(BaseModelError) as caught:
        opened(str(text_adapter), base="embedded/pictures")
    assert caught.value.code == "llm.not_causal"


def test_an_adapter_whose_file_is_broken_is_refused(text_adapter: Path, tmp_path: Path):
    broken = shutil.copytree(text_adapter, tmp_path / "broken")
    file = broken / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] * float("nan")}, file)
    with pytest.raises(BaseModelError, match="not finite"):
        opened(str(broken))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(BaseModelError, match="cut short"):
        opened(str(broken))


# Rows


def read(tmp_path: Path, adapters: dict[str, answering.Named], text: str, *, classifies: bool = True):
    path = tmp_path / "in.jsonl"
    path.write_text(text, encoding="utf-8")
    return answering.read_rows(path, adapters, classifies=classifies)


def test_rows_are_read_with_everything_they_hold(text_adapter: Path, tmp_path: Path):
    adapters = answering.parse_adapters([str(text_adapter)])
    lines = [
        {"message": "a", "label": " billing ", "extra": {"deep": [1, None]}, "adapter": "whatever"},
        {"message": " b ", "label": None, "id": 7},
        {"message": "c", "label": ""},
    ]
    rows = read(tmp_path, adapters, "\n\n".join(map(json.dumps, lines)))
    assert rows[0] == lines[0] | {"label": "billing"}
    assert [row["message"] for row in rows] == ["a", " b ", "c"] and rows[1]["id"] == 7
    assert not rows[1]["label"] and not rows[2]["label"]


BROKEN: list[tuple[str, str, str]] = [
    ("no message", '{"text": "x"}', "message"),
    ("blank message", '{"message": " "}', "message"),
    ("message of a number", '{"message": 5}', "message"),
    ("half a character", '{"message": "\\ud83d"}', "message"),
    ("unknown label", '{"message": "x", "label": "returns"}', "returns"),
    ("label of a list", '{"message": "x", "label": ["billing"]}', "label"),
    ("no object", '["message"]', "object"),
    ("broken", '{"message": x}', "JSON"),
    ("twice", '{"message": "x", "message": "y"}', "twice"),
]


@pytest.mark.parametrize(("line", "said"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_row_is_named_by_its_line(text_adapter: Path, tmp_path: Path, line: str, said: str):
    adapters = answering.parse_adapters([str(text_adapter)])
    good = '{"message": "fine"}\n'
    with pytest.raises(DataError) as caught:
        read(tmp_path, adapters, good * 16 + line + "\n" + good)
    sentence = str(caught.value)
    assert "in.jsonl:17" in sentence and said in sentence and "\n" not in sentence


@pytest.mark.parametrize("name", ['"three"', '""', "null", '["one"]', "1"])
def test_a_row_for_an_adapter_that_is_not_there_is_named(text_adapter: Path, tmp_path: Path, name: str):
    adapters = answering.parse_adapters([f"one={text_adapter}", f"two={text_adapter}"])
    with pytest.raises(DataError) as caught:
        read(tmp_path, adapters, f'{{"message": "x", "adapter": {name}}}')
    assert "in.jsonl:1" in str(caught.value)
    assert len(read(tmp_path, adapters, '{"message": "x", "adapter": " two "}')) == 1


def test_an_adapter_without_labels_is_refused_before_the_base_is_loaded(text_adapter: Path, tmp_path: Path):
    adapters = answering.parse_adapters([str(bare(tmp_path, text_adapter))])
    for classifies, line in ((True, '{"message": "x", "label": "a"}'), (False, '{"message": "x"}')):
        with pytest.raises(BaseModelError) as caught:
            read(tmp_path, adapters, line, classifies=classifies)
        assert caught.value.code == "llm.no_labels" and "--labels" in str(caught.value)
    # A reply under a label that is given needs no list of labels.
    assert len(read(tmp_path, adapters, '{"message": "x", "label": "a"}', classifies=False)) == 1


def test_an_empty_file_is_refused(text_adapter: Path, tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, answering.parse_adapters([str(text_adapter)]), "\n\n")
    assert "in.jsonl" in str(caught.value)


# What is written


def test_rows_are_written_as_they_came(tmp_path: Path):
    rows = [{"message": "你好 👋", "n": 1.5, "none": None}, {"message": "x", "foreign": "\ud83d"}]
    answering.write_rows(tmp_path / "out.jsonl", rows)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert "你好 👋" in lines[0]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(MachineError):
            answering.write_rows(path, [{"message": "x" * 100}] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]
