"""
The modules of a webhook's way as machine code: `python -m gatewayd.compilation`, which nobody has to run.

Decides which modules mypyc compiles and puts what it makes beside the installed sources, where Python prefers it.
Never changes a source: the compiled modules are the same ones, and every test passes with them. Needs the extra
`compiled`, a C compiler and Python's headers; takes a minute or two.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from gatewayd import COMPILED, PACKAGE

MODULES: Final = (
    *("accesslog", "answers", "cells", "committed", "errors", "health", "journal", "metrics", "times"),
    *(f"bus/{name}" for name in ("inlet", "lane", "nats", "publication", "requests")),
    *(f"http/{name}" for name in ("channel", "exchange", "framing", "loopport", "message", "rules", "site")),
    "http/capacity",
    *(
        f"ingress/{name}"
        for name in (
            *("addresses", "admission", "events", "fields", "headers", "normalise", "pipeline", "resource", "shedding"),
            *("signature", "sources", "strict", "turns"),
        )
    ),
    "stores/memory",
)
"""What a webhook passes through. Left out: subclasses of Twisted's services, and what is seldom run."""

EXTENDED: Final = frozenset({"LoopPort", "Response", "Streamed"})
"""Classes that have subclasses elsewhere."""

PLAIN: Final = frozenset({"Direct", "Committed"})
"""Classes that extend others' classes, Twisted's Deferred: they stay classes of Python's own."""

_BUILD: Final = """
import sys
from setuptools import setup
from mypyc.build import mypycify
setup(name="gatewayd-compiled", packages=[], script_args=["-q", "build_ext", "--inplace"],
      ext_modules=mypycify(["--config-file=mypy.ini", *sys.argv[1:]], opt_level="3", debug_level="0"))
"""
_MYPY: Final = "[mypy]\nplugins = mypy_zope:plugin\nignore_missing_imports = True\nfollow_imports = silent\n"


def build(target: Path) -> int:
    """Compile what is installed in `target`; returns how many modules were."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copytree(PACKAGE, work / "gatewayd", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        sources = [work / "gatewayd" / f"{module}.py" for module in MODULES]
        for source in sources:
            source.write_text(prepare(source.read_text("utf-8")), "utf-8")
        (work / "mypy.ini").write_text(_MYPY)
        (work / "build.py").write_text(_BUILD)
        paths = [str(source.relative_to(work)) for source in sources]
        subprocess.run([sys.executable, "build.py", *paths], cwd=work, check=True, env={**os.environ, "CFLAGS": "-O2"})
        made = sorted(work.glob("*.so")) + sorted((work / "gatewayd").rglob("*.so"))
        remove(target)
        for file in made:
            place = file.relative_to(work)
            shutil.copy(file, target.parent / place)
        files = [str(file.relative_to(work)) for file in made]
        (target / COMPILED).write_bytes(msgspec.json.encode({"sources": digests(target), "files": files}))
    return len(sources)


_EXTENDED: Final = """import typing

if typing.TYPE_CHECKING:
    from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
"""
_PLAIN: Final = """def _plain_NAME(made: object) -> object:
    return made


@_plain_NAME
"""


def prepare(source: str) -> str:
    """
    The source as mypyc likes it. Of a class with a decorator that it does not know mypyc makes a plain one, whose
    attributes are no faster than before: `@implementer(...)` is said behind its class, and PLAIN ones get a decorator.
    EXTENDED ones say so, in words that need nothing at run time.
    """
    lines = source.splitlines(keepends=True)
    said: list[str] = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        marked = _EXTENDED if node.name in EXTENDED else _PLAIN if node.name in PLAIN else ""
        lines[node.lineno - 1] = marked.replace("NAME", node.name) + lines[node.lineno - 1]
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "implementer":
                lines[decorator.lineno - 1 : decorator.end_lineno] = ["\n"] * len(
                    lines[decorator.lineno - 1 : decorator.end_lineno]
                )
                interfaces = ", ".join(ast.unparse(one) for one in decorator.args)
                said.append(f"classImplements({node.name}, {interfaces})\n")
    text = "".join(lines).replace("import implementer", "import classImplements")
    return "\n".join([text, *said])


def remove(target: Path) -> None:
    """Take every compiled module away: the sources are used again. Nothing that was not made here is touched."""
    record = target / COMPILED
    if record.exists():
        for name in msgspec.json.decode(record.read_bytes()).get("files", ()):
            (target.parent / name).unlink(missing_ok=True)  # one of them stands beside other packages' files
        record.unlink()
    for file in target.rglob("*.so"):  # what an upgrade in place has left
        file.unlink()


def digests(target: Path) -> dict[str, str]:
    """SHA-256 of each source that was compiled."""
    return {name: sha256((target / f"{name}.py").read_bytes()).hexdigest() for name in MODULES}


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gatewayd.compilation", description=__doc__)
    parser.add_argument("--remove", action="store_true", help="take the compiled modules away")
    if parser.parse_args(arguments).remove:
        remove(PACKAGE)
        print("the compiled modules are gone")
        return 0
    print(f"{build(PACKAGE)} modules compiled in {PACKAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
