"""
gatewayd as systemd/install puts it on a host, in a directory of a test's own: a copy of this tree, installed from the
lock into a fresh environment.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.gateway import ROOT

UNIT = "at-gateway"


HIDDEN = ("/home/", "/root/", "/run/user/")
"""What a unit with ProtectHome= does not see."""


def host_python() -> str:
    """The Python that runs the tests; where units would not see that, the machine's own if it is new enough."""
    own = "/usr/bin/python3"
    test = "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"
    if not f"{sys.base_prefix}/".startswith(HIDDEN) or not Path(own).exists():
        return sys.executable
    fits = subprocess.run([own, "-c", test], check=False, capture_output=True).returncode == 0
    return own if fits else sys.executable


def copy_source(to: Path) -> Path:
    """What git knows of this tree, and what is new in it."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes((ROOT / name).read_bytes())
            (to / name).chmod((ROOT / name).stat().st_mode & 0o777)
    return to


def install(
    source: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the installer; what it said, both streams in order."""
    return subprocess.run(
        [str(source / "systemd" / "install"), *arguments],
        env={**os.environ, "PYTHON": host_python(), **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


class Installed:
    """An image of a host under `root`, with the unit at-gateway and a nats-server."""

    def __init__(self, root: Path) -> None:
        self.source = copy_source(root / "source")
        self.root = root / "host"
        done = install(self.source, "--unit", UNIT, "--with-nats", "--destdir", str(self.root))
        if done.returncode:
            raise RuntimeError(f"the installer failed:\n{done.stdout[-3000:]}")

    @property
    def program(self) -> Path:
        """The environment that the unit runs from."""
        (found,) = (path.parent for path in (self.root / "opt" / UNIT).glob("*/complete"))
        return found

    def path(self, name: str) -> Path:
        """A file of the host, by its absolute name there."""
        return self.root / name.removeprefix("/")

    def unit_file(self, name: str) -> Path:
        """One of the units."""
        return self.path(f"/usr/local/lib/systemd/system/{name}")

    def moved(self, text: str) -> str:
        """A unit's text, or a line of it, with the names that systemd fills in, and pointing into this image."""
        text = text.replace("%N", UNIT)
        return re.sub(rf"(?<=[ =\"])/(?=opt/{UNIT}|etc/{UNIT}|etc/nats-server)", f"{self.root}/", text)
