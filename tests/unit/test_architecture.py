"""What the linters cannot say: the pure core needs nothing but the standard library, whatever else is installed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ACTORS = Path(__file__).parents[2] / "actors"
CORE = ("calendar", "changes", "slots", "appointments", "decisions", "availability", "policy", "messages", "errors")


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_the_standard_library_and_itself(module: str) -> None:
    core = {f"actors.{name}" for name in CORE}
    tree = ast.parse((ACTORS / f"{module}.py").read_text(encoding="utf-8"))
    others = [name for name in imported(tree) if name not in core]
    assert [name for name in others if name.partition(".")[0] not in sys.stdlib_module_names] == []


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module="actors", names=names):
                yield from (f"actors.{alias.name}" for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module
