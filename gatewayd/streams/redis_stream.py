"""
One stream in Redis, asked about and read in stretches on the link that everybody shares.

Decides what is asked and how much of it at once. Never blocks on the server (the poller does, on a connection of its
own), never writes to the stream; beside it, in `<key>:epoch`, it keeps the stream's epoch.
"""

import enum
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred

from gatewayd.errors import Unavailable
from gatewayd.stores.redisreplies import RedisRefused
from gatewayd.stores.script import Script
from gatewayd.streams.cursor import ORIGIN, Cursor, Look, StreamId, next_count, parse_id
from gatewayd.streams.entries import Malformed, RawEntry, read_entries

T = TypeVar("T")

PAGE_ENTRIES: Final = 128
PAGE_BYTES: Final = 1024 * 1024
_FIRST_PAGE: Final = 32


class Link(Protocol):
    """What is needed of the link to Redis; see stores.redislink."""

    def call(self, *args: bytes | str | int) -> Deferred[Any]:
        """One command."""

    def run(self, script: Script, keys: Any, args: Any) -> Deferred[Any]:
        """One script."""


class Cut(enum.Enum):
    """Why a stretch of a stream is not there to be read."""

    TOO_MUCH = "too_much"
    """It is longer than was asked for."""
    TRIMMED = "trimmed"
    """Entries after its beginning may have been removed, or the stream is another one now."""
    UNAVAILABLE = "unavailable"
    """Redis does not answer, or refuses."""


class RedisStream:
    """
    The stream under `key`. `new_epoch` makes a random text that no stream had before, of at most 32 characters of
    printable ASCII.
    """

    def __init__(self, key: str, link: Link, new_epoch: Callable[[], str]) -> None:
        self.key = key
        self._link = link
        self._new_epoch = new_epoch
        self._look = Script.of("stream_look")

    async def look(self, cursor: Cursor | None = None) -> Look:
        """How the stream stands now; `cursor`: where the caller stands who follows it. Fails as the link does."""
        keys, args = [self.key, f"{self.key}:epoch"], [self._new_epoch(), "", ORIGIN.text, ""]
        if cursor is not None:
            args[1:] = [cursor.epoch, cursor.at.text, "" if cursor.counted is None else str(cursor.counted)]
        name, base, first, last, added, length = await self._link.run(self._look, keys, args)
        return Look(name.decode(), _id(base), _id(first), _id(last), added, length)

    async def read_range(
        self,
        epoch: str,
        after: StreamId,
        up_to: StreamId,
        parse: Callable[[RawEntry], T | Malformed],
        *,
        count: int,
        size_bytes: int,
    ) -> list[T] | Cut:
        """
        The entries behind `after`, up to and with `up_to`, in order and all of them, or why not. Malformed ones are
        left out: whoever follows the stream counts them.

        At most `count` entries, malformed ones too, of `size_bytes` together, in pages of a bounded size. That nothing
        is missing is certain only while an entry at or before `after` is still there, or nothing was ever removed, or
        nothing came after it: else it is TRIMMED, also when it may be all there.
        """
        try:
            entries = await self._pages(after, up_to, count, size_bytes)
            if entries is None:
                return Cut.TOO_MUCH
            look = await self.look()
        except (Unavailable, RedisRefused):
            return Cut.UNAVAILABLE
        whole = look.last <= after or (look.length > 0 and look.first <= after) or look.length == look.added
        if look.epoch != epoch or not whole:
            return Cut.TRIMMED
        parsed = map(parse, entries)
        return [found for found in parsed if not isinstance(found, Malformed)]

    async def quiet_from(self, epoch: str, at: StreamId) -> StreamId:
        """
        The furthest place before `at` behind which nothing came up to `at`: that of the entry there, or ORIGIN when
        there never was one. `at` itself where the stream, or Redis, does not tell.
        """
        try:
            found = read_entries(await self._link.call("XREVRANGE", self.key, at.text, ORIGIN.text, "COUNT", 1))
            look = await self.look()
        except (Unavailable, RedisRefused):
            return at
        if look.epoch != epoch:
            return at
        if found:
            return found[0].id
        return ORIGIN if look.length == look.added else at

    async def _pages(self, after: StreamId, up_to: StreamId, count: int, size_bytes: int) -> list[RawEntry] | None:
        """The raw entries; None when they are more than was asked for."""
        found: list[RawEntry] = []
        size, page = 0, _FIRST_PAGE
        while after < up_to:
            answer = await self._link.call("XRANGE", self.key, f"({after.text}", up_to.text, "COUNT", page)
            entries = read_entries(answer)
            found += entries
            taken = sum(entry.size_bytes for entry in entries)
            size += taken
            if len(found) > count or size > size_bytes:
                return None
            if len(entries) < page:
                break
            after = entries[-1].id
            page = next_count(len(entries), taken, most=PAGE_ENTRIES, budget_bytes=PAGE_BYTES)
        return found


def _id(raw: bytes) -> StreamId:
    found = parse_id(raw)
    if found is None:
        raise ValueError("the server gave no id where one was due")
    return found
