"""Limits that keep the code readable and safe, and modules importable on every system."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST_LINES = 450
MOST_LOOP_LINES = 150
FEWEST_FILES = 60
LOOP_KNOWS_NOTHING_OF = ("pixel", "latent", "image", "picture", "token", "prompt", "text", "caption", "unet")

# Modules that run code found in a file, and calls that run a string.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
UNSAFE_KEYWORDS = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}

# Imports every module as a machine without POSIX would: fcntl and resource are hidden from this package only, because
# the libraries underneath may use them where they exist.
IMPORT_WITHOUT_POSIX = """
import builtins, importlib, pkgutil, signal

HIDDEN = {"fcntl", "resource", "grp", "pwd", "termios", "tty", "pty"}
genuine = builtins.__import__

def without_posix(name, globals=None, locals=None, fromlist=(), level=0):
    if name in HIDDEN and (globals or {}).get("__name__", "").startswith("lora_scripts"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return genuine(name, globals, locals, fromlist, level)

builtins.__import__ = without_posix
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM"):
    if hasattr(signal, name):
        delattr(signal, name)
import lora_scripts

names = [module.name for module in pkgutil.walk_packages(lora_scripts.__path__, "lora_scripts.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


def python_files(root: Path, *folders: str) -> list[Path]:
    found = [path for folder in folders for path in (root / folder).rglob("*.py")]
    return sorted(found + list(root.glob("*.py")))


def unsafe_lines(source: str, *, may_import: bool = False) -> Iterator[str]:
    """Yield "line: what" for every call or import that could run code from data."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import) and not may_import:
            names = [alias.name for alias in node.names if alias.name in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and not may_import:
            names = [node.module or ""] if node.module in UNSAFE_MODULES else []
        elif isinstance(node, ast.Call):
            names = [ast.unparse(node.func)] if ast.unparse(node.func) in UNSAFE_CALLS else []
            names += [
                f"{word.arg}={word.value.value}"
                for word in node.keywords
                if word.arg in UNSAFE_KEYWORDS
                and isinstance(word.value, ast.Constant)
                and word.value.value is UNSAFE_KEYWORDS[word.arg]
            ]
            if ast.unparse(node.func) == "torch.load" and not any(w.arg == "weights_only" for w in node.keywords):
                names.append("torch.load without weights_only")
        yield from (f"{line}: {name}" for name in names)


def test_no_long_files(root: Path) -> None:
    files = python_files(root, "src", "tests", "tools", "bench")
    assert len(files) >= FEWEST_FILES
    lengths = {str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_names_say_what_is_inside(root: Path) -> None:
    files = python_files(root, "src", "tests", "tools", "bench")
    assert len(files) >= FEWEST_FILES
    assert [str(path) for path in files if re.search(r"util|helper|manager|misc|common", path.stem)] == []


def test_the_loop_is_short_and_knows_nothing_of_what_it_trains(root: Path) -> None:
    text = (root / "src/lora_scripts/train/loop.py").read_text(encoding="utf-8")
    assert 0 < len(text.splitlines()) <= MOST_LOOP_LINES
    assert [word for word in LOOP_KNOWS_NOTHING_OF if word in text.lower()] == []


def test_nothing_runs_code_from_data(root: Path) -> None:
    files = python_files(root, "src", "tests", "tools", "bench")
    assert len(files) >= FEWEST_FILES
    # A test may write a pickle to see it refused.
    found = [
        f"{path.relative_to(root)}:{line}"
        for path in files
        for line in unsafe_lines(path.read_text(encoding="utf-8"), may_import=path.is_relative_to(root / "tests"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec('1')",
        "os.system('ls')",
        "yaml.load(text)",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_unsafe_line_is_found(line: str) -> None:
    assert len(list(unsafe_lines(line))) == 1


def test_safe_lines_pass() -> None:
    lines = "network.eval()\nYAML(typ='safe').load(text)\ntorch.load(path, weights_only=True)\nrun([], shell=False)"
    assert list(unsafe_lines(lines)) == []


def test_every_module_imports_without_posix() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_WITHOUT_POSIX], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 40
