"""
Dead letters as they are read back from the stream. Pure.

Decides what the headers of a stored letter say, and how the place of a fault is shown. Never decides what becomes of
a letter (replaying does).
"""

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gatewayd.bus.publication import Stored
from gatewayd.times import Wall

LETTERS: Final = "dlq.signals.>"
SIZE_HEADER: Final = "Nats-Msg-Size"
"""The length of the body, where the server was asked for headers only."""

_AROUND: Final = 60


@dataclass(frozen=True, slots=True)
class Letter:
    """
    One dead letter. What its headers do not say, or say in a form that is not ours, is "" or None.

    `received_at` is text as stored; `position` is (line, column), both from 1; `key` the Idempotency-Key that came with
    it, which is its identity where `key_is_identity`; `size_bytes` is the body's.
    """

    sequence: int
    subject: str
    stored_at: Wall
    code: str
    source: str
    corr_id: str
    received_at: str
    reasons: tuple[str, ...]
    position: tuple[int, int] | None
    key: str | None
    key_is_identity: bool
    size_bytes: int


def parse_letter(stored: Stored) -> Letter:
    """A letter from its message, read with or without its body."""
    headers = stored.headers
    size = headers.get(SIZE_HEADER, "")
    return Letter(
        stored.sequence,
        stored.subject,
        stored.time,
        headers.get("Dlq-Code", ""),
        headers.get("Source", ""),
        headers.get("Corr-ID", ""),
        headers.get("Received-At", ""),
        _reasons(headers),
        _position(headers.get("Dlq-Position", "")),
        headers.get("Idempotency-Key"),
        headers.get("Dlq-Identity") == "key",
        int(size) if size.isascii() and size.isdigit() else len(stored.body),
    )


def _reasons(headers: Mapping[str, str]) -> tuple[str, ...]:
    text = headers.get("Dlq-Reasons", "")
    try:
        found = json.loads(text)
    except ValueError:
        found = [text] if text else []
    return tuple(str(one) for one in found) if isinstance(found, list) else (text,)


def _position(text: str) -> tuple[int, int] | None:
    line, comma, column = text.partition(",")
    numbers = line + column
    return (int(line), int(column)) if comma and line and column and numbers.isascii() and numbers.isdigit() else None


def point_at(body: bytes, position: tuple[int, int]) -> tuple[str, str]:
    """
    The line of a body that a position names, and a caret under the character.

    Lines end with LF, columns count characters, as in the position. Of a long line only what is near is shown. What a
    terminal would not print in place is written as an escape, and the caret moves with it.
    """
    lines = body.decode("utf-8", "replace").split("\n")
    number, column = position
    line = lines[number - 1] if 1 <= number <= len(lines) else ""
    at = min(max(column, 1) - 1, len(line))
    first, last = max(0, at - _AROUND), at + _AROUND
    before = ("…" if first else "") + _shown(line[first:at])
    after = _shown(line[at:last].removesuffix("\r")) + ("…" if last < len(line) else "")
    return before + after, " " * _width(before) + "^"


def _shown(text: str) -> str:
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode("ascii") for mark in text)


def _width(text: str) -> int:
    """Columns of a terminal that the text takes."""
    return sum(0 if unicodedata.combining(mark) else 1 + (unicodedata.east_asian_width(mark) in "WF") for mark in text)
