"""One gatewayctl command line in this process, with a world of its own around it."""

import io
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec

from gatewayd.cli import run
from gatewayd.cli.console import Surroundings
from gatewayd.times import Wall

NOW = Wall(1_768_471_800.0)
NOW_TEXT = "2026-01-15T10:10:00.000Z"


class World:
    """Clocks that stand still but for sleep(), nonces that count, and a stdin."""

    def __init__(self, environ: Mapping[str, str] | None = None, stdin: bytes = b"") -> None:
        self.slept: list[float] = []
        self.surroundings = Surroundings(
            environ={"HOME": "/nonexistent", **(environ or {})},
            wall=lambda: Wall(NOW + sum(self.slept)),
            monotonic=lambda: 1000.0 + sum(self.slept),
            sleep=self.slept.append,
            stdin=lambda: io.BytesIO(stdin),
            nonce=(f"nonce-{number:04d}" for number in count(1)).__next__,
        )


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    world: World = field(repr=False)

    @property
    def lines(self) -> list[str]:
        """stdout's lines."""
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        """stdout, which must be one line of JSON."""
        assert self.out.count("\n") == 1, self.out
        return msgspec.json.decode(self.out)


def gatewayctl(*arguments: str, environ: Mapping[str, str] | None = None, stdin: bytes = b"") -> Ended:
    """Run one command line."""
    world = World(environ, stdin)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(arguments, world.surroundings)
    return Ended(int(code), out.getvalue(), err.getvalue(), world)
