"""
What docs/guarantees.md and docs/threat-model.md lean on: each test that they name is there, each limit is the code's.

A proof is written as `wire/test_hostile.py::test_row`, below tests/; a limit as a row between the markers `limits`,
whose name leads to a constant, a default of a class in gatewayd, or a setting.
"""

import ast
import dataclasses
import importlib
import inspect
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.settings_table import TABLE
from tests import generated
from tests.documents import ROOT, read
from tests.ledger.faults import ROWS
from tests.ledger.scenes import SCENES

PAGES = ("docs/guarantees.md", "docs/threat-model.md")
PROOF = re.compile(r"`((?:[a-z]+/)+test_[a-z_]+\.py)((?:::\w+)*)`")
FAULT = re.compile(r"`--fault ([a-z-]+)`")
AMOUNT = re.compile(r"([0-9][0-9,.]*)(?: (KiB|MiB|s)\b)?")
UNITS = {None: 1, "s": 1, "KiB": 1024, "MiB": 1024 * 1024}


def defined(path: str, names: list[str]) -> bool:
    """Whether the file below tests/ defines this class, function, or method of a class; no names: the file itself."""
    file = ROOT / "tests" / path
    if not file.is_file():
        return False
    body: list[ast.stmt] = ast.parse(file.read_text("utf-8")).body
    for name in names:
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = next((one for one in body if isinstance(one, kinds) and one.name == name), None)
        if found is None:
            return False
        body = found.body
    return True


def default_of(owner: Any, name: str) -> Any:
    """A constant of a module, a field's default of a dataclass, or a default of what makes a class."""
    if inspect.ismodule(owner):
        return getattr(owner, name)
    if dataclasses.is_dataclass(owner):
        return next(field.default for field in dataclasses.fields(owner) if field.name == name)
    return inspect.signature(owner).parameters[name].default


def value_of(name: str) -> Any:
    """What `http.rules.Limits.head_s` or `ingress.turns.WAITING` is in gatewayd."""
    parts = name.split(".")
    depth = 2 if parts[-2][0].isupper() else 1
    owner: Any = importlib.import_module(".".join(["gatewayd", *parts[:-depth]]))
    return default_of(getattr(owner, parts[-2]) if depth == 2 else owner, parts[-1])


class ProofsTest(SynchronousTestCase):
    """What the pages show their promises by."""

    def test_every_proof_is_there(self) -> None:
        """Each test that a page names exists, under that name."""
        for page in PAGES:
            named = PROOF.findall(read(page))
            self.assertGreater(len(named), 20, page)
            for path, names in named:
                self.assertTrue(defined(path, names.split("::")[1:]), f"{page}: {path}{names}")

    def test_nothing_is_found_that_is_not_there(self) -> None:
        """A name that is only nearly one is none: a method is looked for in its own class."""
        here = "unit/test_claims.py"
        self.assertTrue(defined(here, ["ProofsTest", "test_every_proof_is_there"]))
        for path, names in (
            (here, ["test_every_proof_is_there"]),
            (here, ["ProofsTest", "test"]),
            ("unit/none.py", []),
        ):
            self.assertFalse(defined(path, names))

    def test_every_fault_is_one(self) -> None:
        """Each fault that a page names can be asked for."""
        named = {name for page in PAGES for name in FAULT.findall(read(page))}
        self.assertGreater(len(named), 10)
        self.assertEqual(named - {"all", *(one.name for one in (*ROWS, *SCENES))}, set())

    def test_the_place_of_the_measured_table(self) -> None:
        """The markers stand there once each, so that a new table can be put between them."""
        self.assertIn("\n\nmeasured\n\n", generated.between(read("docs/guarantees.md"), "faults", "measured"))


class LimitsTest(SynchronousTestCase):
    """The table of limits."""

    def test_limits(self) -> None:
        """Each limit is the one in force: a constant or a default of the code, or a setting's default."""
        _, rest = read("docs/threat-model.md").split("<!-- limits -->\n")
        rows = re.findall(r"^\| (?!---)(.+) \|$", rest.split("<!-- /limits -->")[0], re.MULTILINE)[1:]
        self.assertGreater(len(rows), 30)
        for row in rows:
            _, limit, name, _ = (cell.strip() for cell in row.split(" | "))
            name = name.strip("`")
            if name.isupper():
                setting = TABLE[name]
                self.assertEqual(limit, setting.otherwise if setting.default is None else f"`{setting.default}`", row)
                continue
            found = AMOUNT.match(limit)
            assert found is not None, row
            self.assertEqual(float(found[1].replace(",", "")) * UNITS[found[2]], value_of(name), row)
