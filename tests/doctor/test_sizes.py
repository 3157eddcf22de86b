from __future__ import annotations

from pathlib import Path

import pytest

from lora_scripts.doctor import sizes
from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.sizes import Bucket, preview
from lora_scripts.doctor.survey import Survey, survey
from tests.doctor import drawn_pictures


def surveyed(folder: Path, shapes: list[tuple[int, int]], **settings: int) -> Survey:
    for number, size in enumerate(shapes):
        drawn_pictures.draw("gradient", number, size).save(folder / f"{number:02d}.png")
    return survey(Settings(folder, **{"resolution": 256, "multiple": 64, "batch_size": 4, **settings}))  # type: ignore[arg-type]


def findings(seen: Survey) -> dict[str, Finding]:
    found = {finding.name: finding for finding in sizes.find(seen)}
    assert all(finding.sentence(part) for finding in found.values() for part in ("what", "why", "fix"))
    return found


def test_the_buckets_are_those_of_training(tmp_path: Path) -> None:
    seen = surveyed(tmp_path, [(512, 512)] * 8 + [(640, 480)] * 3)
    assert preview(seen) == [
        Bucket((256, 256), tuple(f"{number:02d}.png" for number in range(8))),
        Bucket((256, 192), ("08.png", "09.png", "10.png")),
    ]
    found = findings(seen)
    assert found.keys() == {"buckets", "lonely_buckets"}
    assert (found["buckets"].count, found["buckets"].params, found["buckets"].examples) == (
        2,
        {"pictures": 11},
        ("256x256: 8", "256x192: 3"),
    )
    assert (found["lonely_buckets"].count, found["lonely_buckets"].examples) == (1, ("256x192: 3",))
    assert all(finding.severity == Severity.GOOD and not finding.items for finding in found.values())


def test_what_does_not_fit(tmp_path: Path) -> None:
    seen = surveyed(tmp_path, [(512, 512)] * 8 + [(40, 400), (1200, 200), (2400, 150), (120, 110)])
    found = findings(seen)
    named = {name: [name for item in each.items for name in item.files] for name, each in found.items() if each.items}
    assert named == {"too_small": ["08.png"], "cropped": ["09.png"], "too_long": ["10.png"], "small": ["11.png"]}
    assert found["too_small"].severity == found["too_long"].severity == Severity.MUST
    left, top, right, bottom = found["cropped"].items[0].box or (0, 0, 0, 0)
    assert (left, top, bottom) == (pytest.approx(1 - right), 0, 1)
    assert found["cropped"].items[0].detail.params["bucket"] == "512x128"  # type: ignore[union-attr]
    assert found["small"].items[0].detail.params == {"size": "120x110", "bucket": "64x64"}  # type: ignore[union-attr]
    assert {bucket.size for bucket in preview(seen)} == {(256, 256), (512, 128), (64, 64)}


def test_a_set_that_is_small_as_a_whole_names_no_picture(tmp_path: Path) -> None:
    found = findings(surveyed(tmp_path, [(128, 128)] * 8))
    assert found.keys() == {"small_set", "buckets"}
    assert (found["small_set"].count, found["small_set"].items, found["small_set"].params["typical"]) == (8, (), 128)


def test_pictures_a_little_below_the_resolution_are_fine(tmp_path: Path) -> None:
    assert findings(surveyed(tmp_path, [(512, 512)] * 7 + [(224, 224)])).keys() == {"buckets", "lonely_buckets"}
