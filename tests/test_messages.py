"""Both languages say the same things; the code uses every sentence and no other."""

from __future__ import annotations

import ast
import re
import string
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lora_scripts import errors, messages

FEWEST_CODES = 60
PACKAGE = Path(messages.__file__).parents[1]
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# What follows the last dot of a file's name, which is no message code: "config.json".
FILE_ENDINGS = {"csv", "gz", "json", "jsonl", "log", "md", "png", "py", "safetensors", "toml", "txt", "yaml"}
# Codes put together from parts that no single string in the source begins: none so far.
DYNAMIC_PREFIXES: tuple[str, ...] = ()
# Calls that need every value of the sentence then and there.
SAYING = {"text", "Problem", "Note", "Dropped", "Advised"} | {
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
}


def placeholders(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def source_files(root: Path) -> list[Path]:
    folders = (root / "src", root / "tools")
    return sorted([*root.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


@cache
def topics() -> set[str]:
    return {path.stem for path in (PACKAGE / "messages/en").glob("*.toml")} | {"registry"}


def is_code(value: object) -> bool:
    """Say whether a constant looks like a message code: "data.empty_folder", but not "config.json", "config.load"."""
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]+(\.[a-z0-9_]+)+", value):
        return False
    is_module = (PACKAGE / value.replace(".", "/")).with_suffix(".py").exists()
    return value.split(".")[0] in topics() and value.rpartition(".")[2] not in FILE_ENDINGS and not is_module


def docstrings(tree: ast.AST) -> set[ast.AST]:
    statements = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {value for value in statements if isinstance(value, ast.Constant)}


def codes_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every code that stands in the tree as a constant, with its line."""
    ignored = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in ignored and is_code(node.value):
            yield str(node.value), node.lineno


def patterns_in(tree: ast.AST) -> Iterator[str]:
    """Yield f-strings that begin like a code as regular expressions: f"config.key.{key}" -> "config\\.key\\..+"."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr) or not isinstance(node.values[0], ast.Constant):
            continue
        start = str(node.values[0].value)
        if re.fullmatch(r"[a-z]+\.[a-z0-9_.]*", start) and start.split(".")[0] in topics():
            yield "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in node.values
            )


def given(call: ast.Call, position: int) -> set[str] | None:
    """Return the names of the values that go with the code at `position`, or None where they are not written there."""
    names = {word.arg for word in call.keywords if word.arg}
    if any(word.arg is None for word in call.keywords):
        return None
    rest = [*call.args[position + 1 :], *(word.value for word in call.keywords if word.arg == "params")]
    for argument in rest:
        if isinstance(argument, ast.Dict) and all(isinstance(key, ast.Constant) for key in argument.keys):
            names |= {str(key.value) for key in argument.keys if isinstance(key, ast.Constant)}
        elif not isinstance(argument, ast.Constant):
            return None
    return names


def missing_values(tree: ast.AST) -> Iterator[tuple[int, str, set[str]]]:
    """Yield (line, code, placeholders without a value) of the calls that say a sentence."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or getattr(node.func, "attr", getattr(node.func, "id", "")) not in SAYING:
            continue
        for position, argument in enumerate(node.args):
            code = argument.value if isinstance(argument, ast.Constant) else ""
            values = given(node, position) if is_code(code) and messages.has(str(code)) else None
            if values is not None and (missing := placeholders(messages.catalogue("en")[str(code)]) - values):
                yield node.lineno, str(code), missing


@pytest.fixture(scope="module")
def trees(root: Path) -> dict[str, ast.Module]:
    return {str(path.relative_to(root)): ast.parse(path.read_text(encoding="utf-8")) for path in source_files(root)}


@pytest.fixture(scope="module")
def used(trees: dict[str, ast.Module]) -> dict[str, str]:
    """Every code that the source names, and where."""
    return {code: f"{name}:{line}" for name, tree in trees.items() for code, line in codes_in(tree)}


def test_both_languages_have_the_same_files(root: Path) -> None:
    folder = root / "src/lora_scripts/messages"
    files = {language: sorted(p.name for p in (folder / language).iterdir()) for language in messages.LANGUAGES}
    assert len(files["en"]) >= 6
    assert files["en"] == files["zh_CN"]
    assert all(name.endswith(".toml") for name in files["en"])
    empty = [
        path.name
        for language in messages.LANGUAGES
        for path in (folder / language).iterdir()
        if not tomllib.loads(path.read_text(encoding="utf-8"))
    ]
    assert empty == []


def test_both_languages_have_the_same_codes() -> None:
    english, chinese = messages.catalogue("en"), messages.catalogue("zh_CN")
    assert len(english) >= FEWEST_CODES
    assert english.keys() ^ chinese.keys() == set()


def test_both_languages_have_the_same_placeholders() -> None:
    english, chinese = messages.catalogue("en"), messages.catalogue("zh_CN")
    different = [code for code in english if placeholders(english[code]) != placeholders(chinese.get(code, ""))]
    assert different == []


def test_sentences_are_complete() -> None:
    for language in messages.LANGUAGES:
        sentences = messages.catalogue(language)
        assert [code for code, text in sentences.items() if not isinstance(text, str) or not text.strip()] == []


def test_chinese_is_chinese() -> None:
    english, chinese = messages.catalogue("en"), messages.catalogue("zh_CN")
    # A line of values and signs alone is the same in every language.
    wordless = {code for code, text in english.items() if not re.search("[A-Za-z]", re.sub(r"\{[^}]*\}", "", text))}
    assert [code for code, text in chinese.items() if code not in wordless and not CHINESE.search(text)] == []
    assert [code for code, text in english.items() if CHINESE.search(text)] == []


def test_every_code_that_is_used_exists(used: dict[str, str]) -> None:
    assert len(used) >= FEWEST_CODES
    assert {code: where for code, where in used.items() if not messages.has(code)} == {}


def test_every_code_that_exists_is_used(trees: dict[str, ast.Module], used: dict[str, str]) -> None:
    patterns = [re.compile(pattern) for tree in trees.values() for pattern in patterns_in(tree)]
    unused = [
        code
        for code in messages.catalogue("en")
        if code not in used
        and not code.startswith(DYNAMIC_PREFIXES or ("\0",))
        and not any(pattern.fullmatch(code) for pattern in patterns)
    ]
    assert unused == []


def test_every_value_is_given(trees: dict[str, ast.Module]) -> None:
    missing = [
        f"{name}:{line}: {code} lacks {sorted(names)}"
        for name, tree in trees.items()
        for line, code, names in missing_values(tree)
    ]
    assert missing == []


def test_the_readers_of_the_source_see_what_they_should() -> None:
    code = next(code for code, text in messages.catalogue("en").items() if len(placeholders(text)) == 1)
    (name,) = placeholders(messages.catalogue("en")[code])
    assert [c for c, _ in codes_in(ast.parse(f"f('{code}', 'config.json', 'no code')"))] == [code]
    assert list(patterns_in(ast.parse("f'config.key.{key}'"))) == [r"config\.key\..+"]
    assert [m[2] for m in missing_values(ast.parse(f"DataError('{code}')"))] == [{name}]
    assert [m[2] for m in missing_values(ast.parse(f"Dropped(path, '{code}', {{'other': 1}})"))] == [{name}]
    assert list(missing_values(ast.parse(f"DataError('{code}', {name}=1)"))) == []
    assert list(missing_values(ast.parse(f"Note('{code}', params)"))) == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh_CN"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LORA_SCRIPTS_LANG": "zh_CN", "LC_ALL": "en_US.UTF-8"}, "zh_CN"),
    ],
)
def test_language(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORA_SCRIPTS_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert messages.language() == expected
