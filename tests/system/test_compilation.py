"""The compiled modules: made, found, and refused when the sources beside them are other ones."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gatewayd.compilation import EXTENDED, MODULES, PLAIN, digests, prepare
from tests.documents import ROOT
from tests.installed import copy_source, install

pytest_plugins = ("tests.reporting",)

FULL = bool(os.environ.get("GATEWAYD_TEST_FULL"))
REPLACING = (
    *("test_a_fault_of_ours", "test_an_overload", "test_whose_connection_rests", "test_both_bounds", "test_any_state"),
)
"""Tests that put a function, or a value of another type, in place of one of ours, which only sources allow."""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without anything compiled."""
    leave = shutil.ignore_patterns("*.so", "__pycache__", "compiled.json")
    shutil.copytree(ROOT / "gatewayd", tmp_path / "gatewayd", ignore=leave)
    return tmp_path / "gatewayd"


def run(package: Path, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Python with this copy of the package."""
    environ = {**os.environ, "PYTHONPATH": f"{package.parent}:{ROOT}"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=package.parent,
        env=environ,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_other_sources(package: Path) -> None:
    """After an upgrade in place nothing starts, and the error says what to do; --remove puts it right, no more."""
    made = package.parent / "abc__mypyc.so"
    foreign = package.parent / "def__mypyc.so"
    record = {"sources": digests(package), "files": [made.name]}
    (package / "compiled.json").write_text(json.dumps(record))
    stale = package / "times.cpython-0-x.so"
    for file in (made, foreign, stale):
        file.write_bytes(b"")
    assert run(package, "-c", "import gatewayd").returncode == 0
    with (package / "times.py").open("a") as file:
        file.write("\n")
    refused = run(package, "-c", "import gatewayd")
    assert refused.returncode == 1
    assert "python -m gatewayd.compilation" in refused.stderr
    assert run(package, "-m", "gatewayd.compilation", "--remove").returncode == 0
    assert not stale.exists()
    assert not made.exists()
    assert foreign.exists(), "mypy and others bring such a file too"
    assert run(package, "-c", "import gatewayd").returncode == 0


def test_prepared_sources() -> None:
    """An interface is said behind its class, and the rest of a module stays on its lines."""
    source = "from zope.interface import implementer\n\n\n@implementer(A, B)\nclass C:\n    x = 1\n"
    prepared = prepare(source)
    assert prepared.splitlines()[4:6] == ["class C:", "    x = 1"]
    assert prepared.rstrip().endswith("classImplements(C, A, B)")
    for name in MODULES:
        compile(prepare((ROOT / f"gatewayd/{name}.py").read_text()), name, "exec")


def test_extended() -> None:
    """A compiled class that another module's class extends is listed: else that one cannot be made into an object."""
    trees = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "gatewayd").rglob("*.py"))}
    compiled = {ROOT / f"gatewayd/{name}.py" for name in MODULES}
    classes = {node.name for path in compiled for node in ast.walk(trees[path]) if isinstance(node, ast.ClassDef)}
    extended = {
        base.id
        for path, tree in trees.items()
        if path not in compiled
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in classes and base.id in _imported(tree)
    }
    assert "LoopPort" in extended
    assert not extended - EXTENDED - PLAIN


def _imported(tree: ast.Module) -> set[str]:
    """The names that a module has of other ones."""
    return {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_compiled(package: Path, not_run: Callable[[str], None]) -> None:
    """Every unit test and contract passes with the compiled modules, but for those that replace what they test."""
    if not FULL:
        not_run("compiling takes minutes; GATEWAYD_TEST_FULL=1 does it")
        return
    made = run(package, "-m", "gatewayd.compilation", timeout_s=900)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    found = run(package, "-c", "import gatewayd.http.channel as c; print(c.__file__)").stdout
    assert found.startswith(str(package))
    assert found.rstrip().endswith(".so")
    for name in ("docs", "etc", "tests"):
        shutil.copytree(ROOT / name, package.parent / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, package.parent / name)
    left_out = " and ".join(f"not {name}" for name in (*REPLACING, "architecture", "documents", "claims"))
    done = run(
        package,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit", "tests/contracts", "-k", left_out),
        timeout_s=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_on_a_host(tmp_path: Path, not_run: Callable[[str], None]) -> None:
    """The installer's --compiled: every module is machine code, and what made it is not there."""
    if not FULL:
        not_run("compiling takes minutes; GATEWAYD_TEST_FULL=1 does it")
        return
    root = tmp_path / "host"
    done = install(copy_source(tmp_path / "source"), "--compiled", "--destdir", str(root))
    assert done.returncode == 0, done.stdout[-3000:]
    (python,) = root.glob("opt/gatewayd/*/bin/python")
    told = subprocess.run(
        [python, "-I", "-c", "import importlib, sys; print(importlib.import_module('gatewayd.http.channel').__file__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.rstrip().endswith(".so")
    site = Path(told).parents[2]
    assert len(list((site / "gatewayd").rglob("*.so"))) == len(MODULES)
    assert not (site / "mypy").exists()
