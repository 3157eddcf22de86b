"""In-set retrieval and CLIPScore, on places in space that are set by hand."""

from __future__ import annotations

import numpy
import pytest

from lora_scripts import messages
from lora_scripts.doctor import matching
from lora_scripts.doctor.finding import Severity
from tests.doctor.caption_survey import survey_of


class Places:
    """A model that puts each text where a test says."""

    def __init__(self, places: dict[str, list[float]]):
        self.places, self.asked = places, []

    def embed_pictures(self, pictures):
        raise AssertionError("the pictures' places are given")

    def embed_texts(self, texts) -> numpy.ndarray:
        self.asked.append(len(texts))
        rows = numpy.array([self.places[text] for text in texts], numpy.float32)
        return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)


def test_captions_that_fit_another_picture_better_are_named_worst_first() -> None:
    pictures = numpy.eye(4, dtype=numpy.float16)
    places = {"one": [1, 0, 0, 0], "two": [0.6, 0.8, 0, 0], "three": [0, 0.8, 0.6, 0], "four": [1, 0, 0, 0.5]}
    rows = list(enumerate(places))
    lost, summary = matching.judge(Places(places), ["a.png", "b.png", "c.png", "d.png"], pictures, rows, "a model")
    assert (lost.name, lost.severity) == ("not_found_back", Severity.SHOULD)
    assert [item.files for item in lost.items] == [("d.png",), ("c.png",)]
    detail = lost.items[1].detail
    assert detail is not None
    assert (detail.params["score"], detail.params["rank"]) == ("1.50", 2)
    assert messages.text(detail.code, **detail.params)
    # R@1 = 2/4; MRR = (1 + 1 + 1/2 + 1/2) / 4; CLIPScore = 2.5 (1 + 0.8 + 0.6 + 0.4472) / 4
    assert (summary.params["found"], summary.count, summary.params["mrr"]) == (2, 4, "0.75")
    assert summary.params["score"] == "1.78"
    assert all(finding.sentence("what") for finding in (lost, summary))


def test_what_a_model_cannot_tell_apart_is_not_held_against_a_caption() -> None:
    pictures = numpy.array([[1, 0], [0.9999, 0.01]], numpy.float16)
    findings = matching.judge(
        Places({"x": [1, 0], "y": [1, 0]}), ["a.png", "b.png"], pictures, [(0, "x"), (1, "y")], "m"
    )
    assert [finding.name for finding in findings] == ["retrieval"]


def test_captions_are_compared_in_chunks_with_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    random = numpy.random.default_rng(0)
    pictures = random.normal(size=(50, 8)).astype(numpy.float16)
    pictures /= numpy.linalg.norm(pictures, axis=1, keepdims=True)
    places = {f"t{i}": (pictures[i] + random.normal(size=8) * 0.3).tolist() for i in range(50)}
    rows = [(i, f"t{i}") for i in range(50)]
    names = [f"{i}.png" for i in range(50)]
    whole = matching.judge(Places(places), names, pictures, rows, "m")
    monkeypatch.setattr(matching, "ROWS", 3)
    model = Places(places)
    assert matching.judge(model, names, pictures, rows, "m") == whole
    assert model.asked == [3] * 16 + [2]
    assert 0 < int(str(whole[-1].params["found"])) < 50


def test_nothing_is_loaded_where_no_model_was_given() -> None:
    assert matching.find(survey_of({f"{i}.png": f"cat {i}" for i in range(20)})) == ()
