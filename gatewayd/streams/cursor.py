"""
Where a reader of a stream stands, and whether what it reads next connects to what it read before. Pure.

Decides what an entry's id is, what a look at the stream says of the entries between two reads, and where reading goes
on in another stream under the same key. Never reads a stream: streams.redis_stream does.

A stream counts every entry ever added to it. Whoever knows how many were added up to where it stands can tell from a
look alone that some were removed unread, however short they were there: the entries added since, less those that are
still unread, are lost.
"""

import re
from typing import Final, NamedTuple

from msgspec import Struct

_ID: Final = re.compile(rb"(0|[1-9]\d{0,19})-(0|[1-9]\d{0,19})", re.ASCII)
_END: Final = 1 << 64


class StreamId(NamedTuple):
    """An entry's id: milliseconds of the server's clock, and a number among those of the same millisecond. Ordered."""

    ms: int
    seq: int

    @property
    def text(self) -> str:
        """As the server writes it."""
        return f"{self.ms}-{self.seq}"


ORIGIN: Final = StreamId(0, 0)
"""Before every entry: no entry has it."""


def parse_id(raw: bytes) -> StreamId | None:
    """The id as the server writes it: two decimal numbers of 64 bits without leading zeros; None for anything else."""
    found = _ID.fullmatch(raw)
    if found is None:
        return None
    ms, seq = int(found[1]), int(found[2])
    return StreamId(ms, seq) if ms < _END and seq < _END else None


class Look(Struct, frozen=True):
    """
    A stream at one moment. `first` is the first entry that is there, ORIGIN when there is none; `last` the last id
    ever given; `added` how many entries were ever added, `length` how many are there. A stream that does not exist is
    an empty one. `epoch` names the stream among those that were under this key one after another; up to `base` it is
    the same as in the epoch before.
    """

    epoch: str
    base: StreamId
    first: StreamId
    last: StreamId
    added: int
    length: int


class Break(Struct, frozen=True):
    """What is read next does not connect to what was read: `lost` entries are missing in between, None: unknown."""

    lost: int | None
    new_epoch: bool = False


class Cursor:
    """
    One reader's place: it has seen what it will ever see of the stream up to `at`.

    `counted` is how many entries were added up to there, None while that cannot be known.
    """

    __slots__ = ("at", "counted", "epoch")

    def __init__(self, look: Look, at: StreamId) -> None:
        self.epoch = look.epoch
        self.at = at
        self.counted: int | None = None
        self._count(look)

    def advance(self, to: StreamId, count: int) -> None:
        """`count` entries were read, the last of them `to`."""
        self.at = to
        if self.counted is not None:
            self.counted += count

    def compare(self, look: Look) -> Break | None:
        """
        Whether reading connects, as far as a look that was taken at this very place can tell; None when it does.

        In another epoch the place may move: when the last id of the stream lies before it, what is there after
        `look.base` was never read here.
        """
        if look.epoch != self.epoch or look.last < self.at:
            self.epoch = look.epoch
            if look.last < self.at:
                self.at = look.base
            self.counted = None
            self._count(look)
            return Break(None, new_epoch=True)
        lost = self._count(look)
        return Break(lost) if lost else None

    def _count(self, look: Look) -> int:
        """Settle what was added up to here where the look can say it; how many more that is than was counted."""
        if look.last <= self.at:
            unread = 0
        elif not look.length or look.first > self.at:
            unread = look.length
        else:  # some entries are before this place, some after it: only a walk through them would tell
            return 0
        before, self.counted = self.counted, look.added - unread
        return 0 if before is None else max(0, self.counted - before)


def next_count(count: int, size_bytes: int, *, most: int, budget_bytes: int) -> int:
    """How many entries to ask for so that they take about `budget_bytes`, when the last `count` took `size_bytes`."""
    return max(1, min(most, budget_bytes * count // max(1, size_bytes)))
