"""
What the commands have in common: exit codes, the two outputs, and the world around them.

Decides what goes to stdout and what to stderr, and how a value looks in either form. Never decides what a command
says.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, BinaryIO, Final
from uuid import uuid4

import click

from gatewayd.times import Wall

PROGRAM: Final = "gatewayctl"
COMPLETION_VARIABLE: Final = "_GATEWAYCTL_COMPLETE"


class Code(IntEnum):
    """How a command ends."""

    OK = 0
    NOT_IN_ORDER = 1
    WRONG = 2
    UNREACHABLE = 3
    FAULT = 70
    INTERRUPTED = 130
    READER_LEFT = 141


EXIT_CODES: Final[Mapping[int, str]] = {
    Code.OK: "done, and in order",
    Code.NOT_IN_ORDER: "what was checked is not in order: findings, or something that was refused",
    Code.WRONG: "the command line, the settings or a file are wrong",
    Code.UNREACHABLE: "NATS, Redis or the gateway could not be reached",
    Code.FAULT: "a fault of gatewayctl itself",
    Code.INTERRUPTED: "interrupted (Ctrl-C)",
    Code.READER_LEFT: "whoever read the output went away",
}
"""In --help and in the documents."""


class Failed(Exception):
    """The end of a command that cannot go on: what to say, one line each, and the exit code."""

    def __init__(self, code: Code, *lines: str) -> None:
        super().__init__(*lines)
        self.code = code
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a command meets of the world: environment, both clocks, sleep, the input's bytes, fresh nonces."""

    environ: Mapping[str, str] = field(repr=False)
    wall: Callable[[], Wall]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    stdin: Callable[[], BinaryIO]
    nonce: Callable[[], str]

    @classmethod
    def of_this_process(cls) -> "Surroundings":
        """The real ones."""
        return cls(
            os.environ,
            lambda: Wall(time.time()),
            time.monotonic,
            time.sleep,
            lambda: sys.stdin.buffer,
            lambda: str(uuid4()),
        )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""On every command."""


def show(text: str) -> None:
    """What was asked for: to stdout, at once."""
    click.echo(text)


def show_json(value: object) -> None:
    """One JSON value on one line of stdout. ASCII only, so that no terminal takes any of it for a command."""
    click.echo(json.dumps(value, separators=(",", ":")))


def show_as(as_json: bool, value: object, lines: Iterable[str]) -> None:
    """The value as JSON, or the lines as text."""
    if as_json:
        show_json(value)
    else:
        for line in lines:
            show(line)


def note(text: str) -> None:
    """Everything else: to stderr."""
    click.echo(text, err=True)


def plain(value: object, longest: int = 300) -> str:
    """Text from outside as one printable line: whatever could move a terminal's cursor is written as an escape."""
    text = str(value)[: longest + 1]
    if len(text) > longest:
        text = text[:longest] + "…"
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode("ascii") for mark in text)


def json_or_none(data: bytes) -> Any:
    """The JSON value, or None for anything else."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
