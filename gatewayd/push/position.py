"""
Positions: how far a client has come in what was addressed to it. Pure.

Decides the text of a position and which of two is further. Never decides what is sent again (the hub does).

A position is one mark for each source, or for those that were there: `e` for the client events, `s` for the signals,
then the source's epoch, a dot and two numbers (a stream id's milliseconds and sequence; a stream sequence and 0),
as in `eb3f1c2.1700000000000-0,s91ac.4711-0`. An epoch names one life of a source: numbers of two epochs say nothing
of each other.

What a client does with it: keep the last one of each subscription and send it to resume that subscription. An event
may come twice. It has come before when in the last position each of its marks stands with the same epoch and with
numbers, compared one after the other, that are as high or higher; no position that follows is lower in any mark.
"""

import re
from typing import Final, TypeAlias

from msgspec import Struct

EVENTS: Final = 0
SIGNALS: Final = 1
SOURCES: Final = (EVENTS, SIGNALS)
LONGEST: Final = 192
"""Bytes of the longest text that may be a position."""

At: TypeAlias = tuple[int, int]
"""Where in a source: compared as it stands."""

_LETTERS: Final = "es"
_EPOCH: Final = "[0-9A-Za-z_-]{1,36}"
_NUMBER: Final = "(0|[1-9][0-9]{0,19})"
_MARKS: Final = tuple(re.compile(f"{letter}({_EPOCH})\\.{_NUMBER}-{_NUMBER}") for letter in _LETTERS)
_LARGEST: Final = 2**64 - 1


class Mark(Struct, frozen=True):
    """A place in one source, in one of its lives. `epoch`: 1 to 36 letters, digits, `_` or `-`."""

    epoch: str
    at: At


class Position(Struct, frozen=True):
    """One mark for each source; None for a source that is not there."""

    marks: tuple[Mark | None, Mark | None] = (None, None)

    @property
    def text(self) -> str:
        """What a client keeps."""
        return ",".join(
            f"{letter}{mark.epoch}.{mark.at[0]}-{mark.at[1]}"
            for letter, mark in zip(_LETTERS, self.marks, strict=True)
            if mark is not None
        )

    def moved(self, source: int, mark: Mark | None) -> "Position":
        """The same with another mark for `source`."""
        events, signals = self.marks
        return Position((mark, signals) if source == EVENTS else (events, mark))

    def joined(self, other: "Position") -> "Position":
        """The further of both in every mark; where only one has a mark, or the epochs differ, `other`'s before ours."""
        marks = (_further(self.marks[EVENTS], other.marks[EVENTS]), _further(self.marks[SIGNALS], other.marks[SIGNALS]))
        return other if marks == other.marks else Position(marks)


def _further(one: Mark | None, other: Mark | None) -> Mark | None:
    if one is None or other is None:
        return other or one
    return one if one.epoch == other.epoch and one.at > other.at else other


def parse_position(text: bytes) -> Position | None:
    """The position that a client sent; None for anything that this gateway would not have written."""
    if len(text) > LONGEST or not text.isascii():
        return None
    position, parts = Position(), text.decode("ascii").split(",")
    for source, pattern in zip(SOURCES, _MARKS, strict=True):
        found = pattern.fullmatch(parts[0]) if parts else None
        if found is None:
            continue
        at = int(found[2]), int(found[3])
        if max(at) > _LARGEST:
            return None
        position = position.moved(source, Mark(found[1], at))
        del parts[0]
    return None if parts or position == Position() else position
