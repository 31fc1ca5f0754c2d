"""What the linters cannot say of the packages.

The pure core needs nothing but the standard library, whatever else is installed. Nothing loses a cancellation to
``asyncio.wait_for`` (see ``actors.tasks``); ruff has one list of what is banned, and it is the core's.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACTORS = ROOT / "actors"
PACKAGES = ("actors", "api", "cluster", "notifier", "persistence")
CORE = ("calendar", "changes", "slots", "appointments", "decisions", "availability", "policy", "messages", "errors")


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_the_standard_library_and_itself(module: str) -> None:
    core = {f"actors.{name}" for name in CORE}
    tree = ast.parse((ACTORS / f"{module}.py").read_text(encoding="utf-8"))
    others = [name for name in imported(tree) if name not in core]
    assert [name for name in others if name.partition(".")[0] not in sys.stdlib_module_names] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_waits_in_a_way_that_loses_a_cancellation(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert [file.name for file in files if "wait_for" in called_of_asyncio(file)] == []


def called_of_asyncio(file: Path) -> set[str]:
    """The names that are taken from the module."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(value=ast.Name(id="asyncio"), attr=name):
                names.add(name)
            case ast.ImportFrom(module="asyncio", names=aliases):
                names.update(alias.name for alias in aliases)
    return names


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module="actors", names=names):
                yield from (f"actors.{alias.name}" for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module
