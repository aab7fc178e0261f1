"""
What a line of the log looks like: levels, the three forms, and what no line may hold. Pure.

Decides the bytes of a line (JSON; JSON behind a journal priority; text for a terminal) and escapes whatever a terminal
could take for a command; and the members of a request's line. Never decides what is worth a line.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

ENCODER: Final = msgspec.json.Encoder()


class Level(Enum):
    """Levels: `number` orders them, `priority` is syslog's."""

    DEBUG = ("debug", 10, 7)
    INFO = ("info", 20, 6)
    WARNING = ("warning", 30, 4)
    ERROR = ("error", 40, 3)
    CRITICAL = ("critical", 50, 3)

    def __init__(self, text: str, number: int, priority: int) -> None:
        self.text = text
        self.number = number
        self.prefix = b"<%d>" % priority


LEVELS: Final[Mapping[str, Level]] = {level.text: level for level in Level} | {"warn": Level.WARNING}
"""By their names in lower case; Twisted says "warn"."""


class Form(Enum):
    """How a line is written."""

    JSON = "json"
    JOURNAL = "journal"  # JSON behind <priority>, which the journal takes off (sd-daemon(3))
    TEXT = "text"  # for a person at a terminal


class AccessLine(msgspec.Struct, gc=False, omit_defaults=True):
    """One request's line; members in this order, an empty one with a default left out, then the answer's own."""

    timestamp: str
    level: str
    msg: str
    event: str
    corr_id: str
    requestId: str
    client_ip: str = ""
    ip: str = ""
    method: str = ""
    path: str = ""
    source: str = ""
    instrument: str = ""
    status: int | UnsetType = UNSET  # always given: a default is wanted behind another
    code: str = ""
    validation_status: str = ""
    latency_ms: float | UnsetType = UNSET  # always given
    client_corr_id: str = ""


# What a terminal could take for a command: C0, DEL, C1, and the marks that turn the direction of writing.
UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# DEL and C1 in UTF-8: JSON need not escape them, but a terminal that shows the file would obey them.
_UNSAFE_ENCODED: Final = re.compile(rb"\x7f|\xc2[\x80-\x9f]")


def _escape(text: str) -> str:
    return UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def encode(value: object) -> bytes:
    # Byte by byte is right: in UTF-8 these are nothing else, and in JSON they stand in strings only.
    return _UNSAFE_ENCODED.sub(lambda found: b"\\u%04x" % found[0][-1], ENCODER.encode(value))


def render(form: Form, level: Level, members: Mapping[str, Any], said: frozenset[str] = frozenset()) -> bytes:
    """One line. `members` are JSON values in order; `said` are those that stand in `msg` already (left out of text)."""
    if form is Form.TEXT:
        return _render_text(level, members, said)
    return b"%b%b\n" % (level.prefix if form is Form.JOURNAL else b"", encode(members))


def _render_text(level: Level, members: Mapping[str, Any], said: frozenset[str]) -> bytes:
    """A line for people; only a traceback stands on further lines, indented."""
    told = {"timestamp", "level", "msg", "event", "failure", *said}
    rest = " ".join(
        [
            f"{name}={value if isinstance(value, str) else ENCODER.encode(value).decode()}"
            for name, value in members.items()
            if name not in told
        ]
    )
    parts = [members["timestamp"], f"{level.text.upper():<8}", f"[{members['event']}]", members["msg"]]
    text = _escape(" ".join([*parts, rest] if rest else parts))
    failure = "".join([f"\n    {_escape(line)}" for line in members.get("failure", "").splitlines()])
    return (text + failure + "\n").encode()
