"""
Rules of the tree that no tool of ours checks otherwise: sizes, openings, and imports by their full name.

Which package may import which is import-linter's (setup.cfg).
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "gatewayd").rglob("*.py"))
MODULE_LINES, FUNCTION_LINES = 500, 60

LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "gatewayd/metrics.py:__init__": "one line for each metric family; splitting the list would hide it",
}
"""Exceptions, each with its reason."""

TWISTED_WEB = {"gatewayd/http/stock.py", "gatewayd/commands/upstream.py"}
"""The only users of twisted.web: stock Resources behind our channel, and its client."""


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_module(path: Path) -> None:
    """A module is short, opens by saying what it is, and its functions are short."""
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    assert len(text.splitlines()) <= MODULE_LINES or names(path) in LONG_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES or f"{names(path)}:{node.name}" in LONG_FUNCTIONS, (node.name, lines)


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_imports(path: Path) -> None:
    """twisted.web is met in two places; no module of ours imports a reactor at its top or spawns by asyncio."""
    tree = ast.parse(path.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("create_subprocess"), "the loop's subprocesses silence Twisted's"
    if names(path) not in TWISTED_WEB:
        assert not {name for name in imported if name.startswith("twisted.web")}
    top = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert "reactor" not in top


def test_exceptions_are_needed() -> None:
    """A listed exception that is not one any more is taken off the list."""
    for name in LONG_MODULES:
        assert len((ROOT / name).read_text().splitlines()) > MODULE_LINES
    for name in LONG_FUNCTIONS:
        path, function = name.split(":")
        found = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)]
        lengths = [node.end_lineno - node.lineno + 1 for node in found if node.name == function and node.end_lineno]
        assert max(lengths) > FUNCTION_LINES
