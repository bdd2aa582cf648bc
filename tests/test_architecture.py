"""The house rules that a tool can see: imports point down, functions and files are short, the package never prints."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bigtrain"
FLOORS = (  # a room imports what stands below its own floor, and itself
    ("cli", "__main__"),
    ("verify",),
    ("launch",),
    ("prepare", "finetune", "evaluate", "convert", "plan", "report"),
    ("training",),
    ("checkpoint",),
    ("parallel",),
    ("models",),
    ("data",),
    ("config",),
    ("errors",),
)
FLOOR = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}
NEIGHBOURS = {  # weights are read through convert
    ("finetune", "convert"),
    ("evaluate", "convert"),
    ("finetune", "evaluate"),  # its predictions are scored
    ("plan", "convert"),
    ("report", "convert"),
    ("__main__", "cli"),
}
LONGEST_FUNCTION = 70
LONGEST_FILE = 450


def sources(package: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(package.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.Module, module: tuple[str, ...], package: str) -> Iterator[tuple[int, str]]:
    """(line, room) for everything of ours that a module imports: at its top, inside functions, by name.

    Args:
        tree: The parsed module.
        module: The parts of the package that hold it: `("bigtrain", "config")` for any file in that folder.
        package: `bigtrain`.
    """
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module[: len(module) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        for name in names:
            top, _, rest = name.partition(".")
            if top == package and rest:
                yield getattr(node, "lineno", 0), rest.split(".")[0]


def upward_imports(package: Path) -> list[str]:
    """Every import that does not point down, as `file:line: what is wrong`."""
    wrong = []
    for path, tree in sources(package):
        where = path.relative_to(package)
        room = where.parts[0].removesuffix(".py")
        if room != "__init__" and room not in FLOOR:
            wrong.append(f"{where}:1: {room} is no room of the house; give it a floor in {Path(__file__).name}")
            continue
        for line, other in imported(tree, (package.name, *where.parts[:-1]), package.name):
            if other.startswith("__") and other != "__main__":  # `from bigtrain import __version__`
                continue
            if room == "__init__":
                wrong.append(f"{where}:{line}: bigtrain/__init__.py imports {other}; it must import nothing of ours")
            elif other not in FLOOR:
                wrong.append(f"{where}:{line}: {other} is no room of the house")
            elif room != other and FLOOR[other] >= FLOOR[room] and (room, other) not in NEIGHBOURS:
                wrong.append(f"{where}:{line}: {room} imports {other}, which does not stand below it")
    return wrong


def long_parts(package: Path) -> list[str]:
    """Functions and files above their limits."""
    found = []
    for path, tree in sources(package):
        where = path.relative_to(package)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            found.append(f"{where}: {lines} lines, at most {LONGEST_FILE}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    found.append(f"{where}:{node.lineno}: {node.name} has {length} lines, at most {LONGEST_FUNCTION}")
    return found


def prints(package: Path) -> list[str]:
    """Every mention of the built-in print."""
    return [
        f"{path.relative_to(package)}:{node.lineno}: print; return the value, or use cli's rich console"
        for path, tree in sources(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "print"
    ]


def test_imports_point_down() -> None:
    assert upward_imports(PACKAGE) == []


def test_functions_and_files_are_short() -> None:
    assert long_parts(PACKAGE) == []


def test_the_package_does_not_print() -> None:
    assert prints(PACKAGE) == []


def test_the_rooms_that_exist_are_seen() -> None:
    """The tests above look at the real package, not at an empty folder."""
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path, _ in sources(PACKAGE)}
    assert {"__init__", "errors", "config"} <= rooms
    assert any(room == "errors" for path, tree in sources(PACKAGE) for _, room in imported(tree, (), "bigtrain"))


def house(folder: Path, files: dict[str, str]) -> Path:
    """A made-up package of that name."""
    package = folder / "bigtrain"
    for name, text in {"__init__.py": "__version__ = '1'\n", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("data/shards.py", "import torch\nfrom bigtrain.models import gpt\n", "data/shards.py:2: data imports models"),
        ("data/shards.py", "import bigtrain.training.loop as loop\n", "data/shards.py:1: data imports training"),
        ("data/shards.py", "from bigtrain import checkpoint\n", "data/shards.py:1: data imports checkpoint"),
        ("config/load.py", "def f():\n    from bigtrain.data import x\n", "config/load.py:2: config imports data"),
        ("config/load.py", "from ..data.shards import x\n", "config/load.py:1: config imports data"),
        ("config/load.py", "from .. import data\n", "config/load.py:1: config imports data"),
        ("config/deep/er/x.py", "from ....data import x\n", "config/deep/er/x.py:1: config imports data"),
        (
            "config/load.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import bigtrain.data\n",
            "config/load.py:3: config imports data",
        ),
        (
            "config/load.py",
            "import importlib\nimportlib.import_module('bigtrain.data')\n",
            "config/load.py:2: config imports data",
        ),
        ("plan/x.py", "from bigtrain.report import y\n", "plan/x.py:1: plan imports report"),
        ("convert/x.py", "from bigtrain.finetune import y\n", "convert/x.py:1: convert imports finetune"),
        ("report/x.py", "from bigtrain.launch import y\n", "report/x.py:1: report imports launch"),
        ("launch/x.py", "import bigtrain.cli\n", "launch/x.py:1: launch imports cli"),
        ("errors.py", "from bigtrain.config import Config\n", "errors.py:1: errors imports config"),
        (
            "__init__.py",
            "from bigtrain.errors import UserError\n",
            "__init__.py:1: bigtrain/__init__.py imports errors",
        ),
        ("utils/x.py", "", "utils/x.py:1: utils is no room of the house"),
        ("cli.py", "from bigtrain.helpers import x\n", "cli.py:1: helpers is no room of the house"),
    ],
)
def test_the_checker_finds(tmp_path: Path, file: str, text: str, expected: str) -> None:
    (found,) = upward_imports(house(tmp_path, {file: text}))
    assert found.startswith(expected)


def test_the_checker_lets_pass_what_is_allowed(tmp_path: Path) -> None:
    files = {
        "__main__.py": "from bigtrain.cli import main\n",
        "cli.py": "from bigtrain import __version__\nfrom bigtrain.launch import slurm\nimport bigtrain.report.html\n",
        "evaluate/x.py": "from bigtrain.convert import read\nfrom bigtrain.training import loop\nfrom . import y\n",
        "evaluate/y.py": "from ..errors import UserError\nfrom .x import z\n",
        "errors.py": "import bigtrainer\nfrom os import path\n",
        "config/deep/x.py": "from ..load import y\nfrom . import z\nfrom bigtrain.config import load\n",
    }
    assert upward_imports(house(tmp_path, files)) == []


def test_the_checker_measures(tmp_path: Path) -> None:
    body = "    x = 1\n"
    files = {
        "errors.py": f"def short():\n{body * 69}\n\nclass C:\n    async def long(self):\n{('    ' + body) * 70}",
        "cli.py": "x = 1\n" * 451,
        "config/x.py": "x = 1\n" * 450,
    }
    assert long_parts(house(tmp_path, files)) == [
        "cli.py: 451 lines, at most 450",
        "errors.py:74: long has 71 lines, at most 70",
    ]


def test_the_checker_hears_a_print(tmp_path: Path) -> None:
    text = "from rich import console\nconsole.print('x')\ndef f():\n    print('x')\nmap(print, [])\n"
    found = prints(house(tmp_path, {"cli.py": text}))
    assert sorted(line.split(": ")[0] for line in found) == ["cli.py:4", "cli.py:5"]
