"""The benchmark of text training, on a tiny base: what it prints follows from what was measured."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from bench.text import child, rows, sides, table
from bench.text.__main__ import main
from lora_scripts.config.load import from_mapping
from lora_scripts.data.order import steps_of_epoch
from lora_scripts.preparation import prepare
from tests.tiny_text import write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("tiny") / "base", max_position_embeddings=1024)


def test_the_printed_numbers_follow_from_the_steps(base, tmp_path, capsys):
    main([
        *("--base", str(base), "--rows", "equal", "--steps", "3", "--repeats", "1"),
        *("--sides", "ours", "--json", str(tmp_path / "all.json")),
    ])  # fmt: skip
    printed = capsys.readouterr().out
    (result,) = json.loads((tmp_path / "all.json").read_text()).values()
    (run,), shape = result["runs"], result["shape"]
    assert len(run["seconds"]) == len(run["losses"]) == len(shape["targets"]) == 3
    assert shape["rows"] == 48 and 1 <= sum(shape["targets"]) < sum(shape["real"]) <= sum(shape["padded"])
    timed = sum(run["seconds"][1:])
    assert run["target_tokens_a_second"] * timed == pytest.approx(sum(shape["targets"][1:]))
    assert run["real_tokens_a_second"] * timed == pytest.approx(sum(shape["real"][1:]))
    assert sum(run["seconds"]) < run["job_seconds"] and 0.1 < run["peak_gb"] < 4
    assert run["first_loss"] == run["losses"][0] and run["held_out_loss"] < result["base_held_out_loss"]
    lines = [line.split() for line in printed.splitlines()]
    (shown,) = [line[1:] for line in lines if line[:1] == ["ours"]]
    (middle,) = [line[2:] for line in lines if line[:2] == ["median", "ours"]]
    wanted = [run[name] for name, _, _ in table.FIGURES]
    assert (
        shown
        == middle
        == [f"{value:{form}}".strip() for value, (_, _, form) in zip(wanted, table.FIGURES, strict=True)]
    )
    assert f"{sum(shape['real']):,} tokens" in printed and "ours/" not in printed


def test_all_sides_see_the_same_rows_in_the_same_order_and_count_the_same_targets(base, tmp_path):
    child.make_rows(base, tmp_path, "mixed", 2)
    shown, tokenizer = rows.read(tmp_path / "train.jsonl"), AutoTokenizer.from_pretrained(base)
    config = sides.our_config(base, tmp_path, tmp_path / "out")
    prepared = prepare(from_mapping(config))
    assert prepared.plan.steps == 2 and prepared.plan.step_size == 16
    visits = [visit for step in steps_of_epoch(prepared.examples, 0, sides.SEED, 16) for visit in step]
    ours = [prepared.examples[visit.example] for visit in visits]
    assert [example.title for example in ours] == [row["prompt"][0]["content"] for row in shown]
    assert shown != rows.read(tmp_path / "shuffled.jsonl")
    for example, row in zip(ours, shown, strict=True):
        read, (own,) = rows.tokens(row, tokenizer), example.sequences
        assert read.ids == own.ids.tolist()
        assert list(own.weights.nonzero()[0]) == list(range(read.start, read.end))


def test_rows_have_the_shape_they_are_named_after(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    made = rows.make("equal", 40, "train", tokenizer)
    lengths = [len(rows.tokens(row, tokenizer).ids) for row in made]
    assert 120 <= min(lengths) <= max(lengths) <= 136
    assert made == rows.make("equal", 40, "train", tokenizer)
    mixed = sorted(len(rows.tokens(row, tokenizer).ids) for row in rows.make("mixed", 200, "train", tokenizer))
    assert 75 <= mixed[100] <= 105 and mixed[-4] > 400
    held = rows.make("equal", 40, "heldout", tokenizer)
    assert not {str(row["prompt"]) for row in made} & {str(row["prompt"]) for row in held}


def test_medians_and_ratios():
    shape = {"targets": [5, 10, 20], "real": [50, 100, 200]}
    made = [
        table.figures(table.Run(side, 1, [9.0, a, b], [2.0, 1.0, 0.5], job, peak, held), shape)
        for side, a, b, job, peak, held in (
            ("ours", 1.0, 1.0, 10.0, 10**9, 1.5),
            ("ours", 2.0, 3.0, 20.0, 3 * 10**9, 1.7),
            ("trl", 2.0, 8.0, 60.0, 4 * 10**9, 2.0),
        )
    ]
    assert [row["target_tokens_a_second"] for row in made] == [15, 6, 3]
    middle = table.medians(list(zip(["ours", "ours", "trl"], made, strict=True)))
    assert middle["ours"] == pytest.approx({
        "target_tokens_a_second": 10.5, "real_tokens_a_second": 105, "step_seconds": 1.75, "job_seconds": 15,
        "peak_gb": 2, "first_loss": 2, "held_out_loss": 1.6,
    })  # fmt: skip
    assert table.ratios(middle) == {
        "ours/trl": pytest.approx({
            "target_tokens_a_second": 3.5, "real_tokens_a_second": 3.5, "step_seconds": 0.35, "job_seconds": 0.25,
            "peak_gb": 0.5, "held_out_loss": 0.8,
        })
    }  # fmt: skip
