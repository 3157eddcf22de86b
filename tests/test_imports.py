"""Imports point down the layers; plug-ins do not know each other; light modules stay light."""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "lora_scripts"
FEWEST_MODULES = 40

# The part of the package that a module belongs to, and its layer. `contracts` stands between two layers. A file at the
# top that is not named here is a use-case or a part of one.
USE_CASES = 4.0
LAYERS = {
    **dict.fromkeys(("errors", "messages", "units", "files", "registry", "events", "redaction", "embedded"), 0.0),
    **dict.fromkeys(("data", "adapters", "config", "diffusion"), 1.0),
    "labelling": 1.4,
    "contracts": 1.5,
    **dict.fromkeys(("families", "objectives", "optimizers", "schedules", "exporters", "captioners"), 2.0),
    "train": 3.0,
    **dict.fromkeys(("app", "runs", "lora_tools", "importing", "labels", "doctor"), USE_CASES),
    **dict.fromkeys(("cli", "web", "__main__", "embedded.training", ""), 5.0),
}
PLUGIN_FOLDERS = ("families", "objectives", "optimizers", "schedules", "exporters", "captioners", "data.readers")

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "PIL", "tensorboard", "huggingface_hub"}
# The parts that `--help` and the config check load whole; of adapters/ only adapter.py, of plug-ins not the parts they
# share, whose names begin with an underscore.
LIGHT_PARTS = {"errors", "messages", "units", "files", "registry", "events", "embedded", "data", "config", "contracts"}
LIGHT_PARTS |= {"app", "runs", "cli", "__main__", ""}

PRINT_HEAVY = f"import json, sys; print(json.dumps(sorted({sorted(HEAVY)!r} & sys.modules.keys())))"
HELP = "from lora_scripts.cli import main; raise SystemExit(main(['--help']))"


def part_of(module: str) -> str:
    """Return "data" for "data.readers.pictures", "embedded.training" for its modules, "" for the package itself."""
    if module == "embedded.training" or module.startswith("embedded.training."):
        return "embedded.training"
    return module.split(".")[0]


def plugin_of(module: str) -> tuple[str, str] | None:
    """Return ("families", "sd") for that plug-in's modules, ("families", "_x") for a shared part, else None."""
    for folder in PLUGIN_FOLDERS:
        if module.startswith(f"{folder}."):
            return folder, module.removeprefix(f"{folder}.").split(".")[0]
    return None


def wrong_edge(source: str, target: str) -> str | None:
    """Say what is wrong with `source` importing `target` (names below the package), or None."""
    own, other = part_of(source), part_of(target)
    ours, theirs = plugin_of(source), plugin_of(target)
    if target == "":
        return "the public API is for users of the package"
    if own == other and not (ours and theirs):
        return None if not theirs else "only the registry loads a plug-in"
    if ours and theirs:
        same = ours == theirs or (ours[0] == theirs[0] and theirs[1].startswith("_"))
        return None if same else "plug-ins do not import each other"
    if theirs:
        return "only the registry loads a plug-in"
    ours_at, theirs_at = LAYERS.get(own, USE_CASES), LAYERS.get(other, USE_CASES)
    if ours_at == theirs_at:
        return None if ours_at in (0.0, USE_CASES) else "siblings do not import each other"
    return None if ours_at > theirs_at else "imports point down the layers"


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one cycle of the graph as a path, or an empty list."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target, [*path, node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every module by its name below the package; packages by their folder's name."""
    source = root / "src" / PACKAGE
    trees: dict[str, ast.Module] = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return trees


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """Return the absolute name that a `from ... import` begins with."""
    if not node.level:
        return node.module or ""
    base = f"{PACKAGE}.{module}".rstrip(".").split(".")
    base = base[: len(base) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def literal_start(node: ast.expr) -> str:
    """Return a string literal, or what an f-string begins with."""
    if isinstance(node, ast.JoinedStr):
        return literal_start(node.values[0]) if node.values else ""
    return str(node.value) if isinstance(node, ast.Constant) else ""


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Yield the dotted names that a tree imports, wherever the import stands, and those given to import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = absolute(node, module, is_package)
            # `__version__` and its like are no modules and load nothing.
            yield from (f"{start}.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield literal_start(node.args[0]).rstrip(".") or "?"


def import_graph(trees: Mapping[str, ast.Module], root: Path) -> dict[str, set[str]]:
    """Return which modules of the package each module imports; a name inside a module counts as that module."""
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        is_package = (root / "src" / PACKAGE / module.replace(".", "/") / "__init__.py").exists()
        graph[module] = set()
        for name in imported_names(tree, module, is_package):
            if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
                continue
            target = name.removeprefix(PACKAGE).removeprefix(".")
            while target and target not in trees:
                target = target.rpartition(".")[0]
            graph[module].add(target)
        graph[module].discard(module)
    return graph


def top_level_imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run when the module is imported: none in functions, none under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def is_light(module: str) -> bool:
    plugin = plugin_of(module)
    if plugin:
        return not any(piece.startswith("_") for piece in module.split("."))
    return part_of(module) in LIGHT_PARTS or module in ("adapters", "adapters.adapter")


@pytest.fixture(scope="module")
def trees(root: Path) -> dict[str, ast.Module]:
    return read_modules(root)


@pytest.fixture(scope="module")
def graph(root: Path, trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    return import_graph(trees, root)


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_has_a_layer(trees: dict[str, ast.Module]) -> None:
    assert len(trees) >= FEWEST_MODULES
    folders = {part_of(module) for module in trees if "." in module}
    assert len(folders) >= 12
    assert folders - LAYERS.keys() == set()


def test_imports_point_down(graph: dict[str, set[str]]) -> None:
    edges = [(source, target) for source, targets in graph.items() for target in targets]
    assert len(edges) > FEWEST_MODULES
    # The registry imports what it is asked for, by a name that no reader of the tree can know.
    wrong = {edge: wrong_edge(*edge) for edge in edges if edge != ("registry", "")}
    assert {edge: why for edge, why in wrong.items() if why} == {}


def test_no_cycles(graph: dict[str, set[str]]) -> None:
    assert find_cycle({source: targets - {""} for source, targets in graph.items()}) == []


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("errors", "messages", True),
        ("data.readers.pictures", "data.decode", True),
        ("families.sd", "families._single_file", True),
        ("families.sd.load", "families.sd.keys", True),
        ("families.sd", "contracts", True),
        ("contracts", "data.record", True),
        ("train.loop", "contracts", True),
        ("app", "runs", True),
        ("assembly", "train.loop", True),
        ("train.loop", "assembly", False),
        ("cli.train", "app", True),
        ("errors", "data.record", False),
        ("data.loader", "contracts", False),
        ("data.loader", "data.readers.pictures", False),
        ("data.loader", "diffusion.noise", False),
        ("config.schema", "data.record", False),
        ("families.sd", "families.sdxl", False),
        ("families._shared", "families.sd", False),
        ("families.sd", "objectives.denoise", False),
        ("families.sd", "exporters._header", False),
        ("data.readers.pictures", "data.readers.chat", False),
        ("train.loop", "families.sd", False),
        ("train.loop", "app", False),
        ("app", "cli.train", False),
        ("cli.train", "embedded.training.data", False),
        ("embedded", "embedded.training", False),
        ("app", "", False),
    ],
)
def test_rule(source: str, target: str, allowed: bool) -> None:
    assert (wrong_edge(source, target) is None) is allowed


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_light_modules_import_nothing_heavy_at_top_level(trees: dict[str, ast.Module]) -> None:
    light = [module for module in trees if is_light(module)]
    assert len(light) >= 25
    heavy = {
        module: ast.unparse(node)
        for module in light
        for node in top_level_imports(trees[module])
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.split(".")[0] in HEAVY
    }
    assert heavy == {}


def test_command_line_loads_nothing_heavy() -> None:
    assert json.loads(run(f"from lora_scripts.cli import main; {PRINT_HEAVY}")) == []


def test_every_plugin_loads_without_torch() -> None:
    every = "[registry.load(kind, name) for kind in registry.KINDS for name in registry.names(kind)]"
    modules = "lora_scripts.app, lora_scripts.contracts, lora_scripts.config.load, lora_scripts.cli"
    lines = run(f"import {modules}; from lora_scripts import registry; print(len({every})); {PRINT_HEAVY}").splitlines()
    assert int(lines[0]) >= 7  # sd, denoise, adamw, constant, cosine, diffusers, kohya
    assert json.loads(lines[1]) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows does not count the processor time of children")
def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        output = run(HELP)
        after = os.times()
        assert "usage" in output.lower() or "用法" in output
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert statistics.median(seconds) < 0.3
