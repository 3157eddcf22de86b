"""Every fault of the table has a test that bears its number, or a line that says why not; and there are many."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

FAULTS = [f"F{number:02d}" for number in (*range(1, 85), 87, *range(90, 99))]
SECURITY = ["S16", "S18", "S19", "S21", "S24", "S34", "S50"]
SECURITY += [f"S{n}" for n in (*range(27, 33), *range(36, 40), *range(43, 48))]
FEWEST = 100


def named_tests(root: Path) -> dict[str, list[str]]:
    """The tests of this folder by the numbers in their names; slow ones are marked with "*"."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((root / "tests/faults").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                slow = any("slow" in ast.unparse(decorator) for decorator in node.decorator_list)
                for number in re.findall(r"(?<=_)[fs]\d\d(?=_)", node.name):
                    found[number.upper()].append(path.stem + "::" + node.name + "*" * slow)
    return found


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, list[str]]:
    return named_tests(root)


def test_every_fault_has_a_test_or_a_line(root: Path, found: dict[str, list[str]]) -> None:
    text = (root / "docs/reliability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (F\d\d) \| (.+)$", text, re.MULTILINE))
    assert list(rows) == FAULTS and len(FAULTS) == 94
    for fault in FAULTS:
        elsewhere = re.findall(r"tests/[\w/.]+", rows[fault])
        assert all((root / path.rstrip(".")).exists() for path in elsewhere), fault
        assert found.get(fault) or elsewhere or "not here: " in rows[fault], fault


def test_every_security_check_of_the_list_has_a_test(found: dict[str, list[str]]) -> None:
    assert {number for number in SECURITY if not found.get(number)} == set()


def test_there_are_at_least_a_hundred_in_the_default_part(found: dict[str, list[str]]) -> None:
    quick = {name for names in found.values() for name in names if not name.endswith("*")}
    assert len(quick) >= FEWEST
