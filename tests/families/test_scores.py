"""The numbers of the task: planted answers give the values that the formulas give by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_scripts.families import _scores

LABELS = ["a", "b", "c", "d"]


def planted(heat: float, rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are `heat` times too sure, and labels drawn from what they would be without that."""
    draw = np.random.default_rng(seed)
    honest = draw.normal(0, 1.5, (rows, len(LABELS)))
    shares = _scores.probabilities(honest, 1.0)
    truth = np.array([draw.choice(len(LABELS), p=row) for row in shares])
    return honest * heat, truth


@pytest.mark.parametrize("heat", [0.3, 1.0, 4.0])
def test_the_planted_temperature_is_found_and_confidence_becomes_honest(heat: float):
    scores, truth = planted(heat)
    found = _scores.temperature(scores, truth)
    assert found == pytest.approx(heat, rel=0.05)
    before = _scores.calibration_error(_scores.probabilities(scores, 1.0), truth)
    after = _scores.calibration_error(_scores.probabilities(scores, found), truth)
    assert after < 0.03
    assert before > 0.1 if heat != 1.0 else before < 0.03


def test_temperature_stays_inside_its_range():
    truth = np.zeros(10, int)
    sure = np.tile([5.0, 0.0, 0.0, 0.0], (10, 1))
    assert 0.05 <= _scores.temperature(sure, truth) < 0.5
    assert 19 < _scores.temperature(-sure, truth) <= 20


def test_calibration_error_by_hand():
    shares = np.array([[0.95, 0.05], [0.92, 0.08], [0.65, 0.35], [0.35, 0.65]])
    truth = np.array([0, 1, 0, 0])
    # Bin 0.9..1: two rows, half right, mean 0.935; bin 0.6..0.7: two rows, half right, mean 0.65.
    assert _scores.calibration_error(shares, truth) == pytest.approx(0.5 * 0.435 + 0.5 * 0.15)
    assert _scores.calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0


def confidences(*values: float) -> np.ndarray:
    return np.array([[value, 1 - value] for value in values])


def test_the_threshold_lets_through_what_is_right_often_enough():
    # Right down to 0.8, wrong below: nine of the first ten may be right, not nine of eleven.
    values = [0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.8, 0.7]
    truth = np.array([0] * 9 + [1, 1])
    assert _scores.threshold(confidences(*values), truth) == 0.8
    assert _scores.threshold(confidences(*values), np.zeros(11, int)) == 0.7
    assert _scores.threshold(confidences(*values), np.ones(11, int)) == 1.0


def test_rows_of_one_confidence_pass_together_or_not_at_all():
    """One right row in front of wrong ones just as sure is no reason to trust them."""
    assert _scores.threshold(confidences(0.6, 0.6, 0.6), np.array([0, 1, 1])) == 1.0
    assert _scores.threshold(confidences(0.9, 0.6, 0.6), np.array([0, 0, 1])) == 0.9


def test_a_row_at_the_threshold_is_let_through():
    value = 0.66666666
    assert _scores.threshold(confidences(value), np.array([0])) <= value


def test_macro_f1_by_hand():
    truth, said = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    # a: 2 * 2 / (2 * 2 + 2); b: 2 / 3; c: never right; d: does not occur and does not count.
    assert _scores.macro_f1(truth, said, 4) == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    assert _scores.macro_f1(np.array([], int), np.array([], int), 4) == 0.0


def scores_of(rows: int, heat: float) -> dict:
    scores, truth = planted(heat, rows)
    return {"logs": {"label_accuracy": 0.5}, "details": {"scores": scores.tolist(), "truth": truth.tolist()}}


def test_the_task_file_says_what_was_found(tmp_path: Path):
    (path,) = _scores.write_task(tmp_path, {"labels": LABELS}, scores_of(500, 3.0))
    task = json.loads(path.read_text())
    assert task["labels"] == LABELS and task["schema"] == 1
    assert task["temperature"] == pytest.approx(3.0, rel=0.15) and 0 < task["abstain_below"] <= 1
    held = task["held_out"]
    assert held["rows"] == 500 and held["label_accuracy"] == 0.5
    assert held["calibration_error"] < held["calibration_error_before"] / 2


def test_without_labels_there_is_no_task_file_and_without_held_out_rows_no_calibration(tmp_path: Path):
    assert _scores.write_task(tmp_path, {"labels": []}, scores_of(50, 3.0)) == []
    assert list(tmp_path.iterdir()) == []
    (path,) = _scores.write_task(tmp_path, {"labels": LABELS}, {})
    task = json.loads(path.read_text())
    assert (task["temperature"], task["abstain_below"]) == (1.0, 0.0) and "held_out" not in task
